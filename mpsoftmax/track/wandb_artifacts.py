"""Checkpoints and exported models as W&B artifacts.

reference    the checkpoint's files by their paths: nothing is copied or uploaded, whatever the table's size
backbone     backbone.pt, the backbone alone as an exported model (torch.load with weights_only=True)
files        the whole checkpoint, copied and uploaded
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mpsoftmax.config import Config, load, to_tree
from mpsoftmax.track.protocol import SavedCheckpoint
from mpsoftmax.track.redaction import redacted


def checkpoint_artifact(config: Config, run_id: str, saved: SavedCheckpoint) -> Any:
    """A wandb.Artifact of one checkpoint, not logged yet; None where track.artifacts is none."""
    import wandb

    how = config.track.artifacts
    if how == "none":
        return None
    tree = to_tree(config)
    about = {
        "step": saved.step,
        "figures": dict(saved.figures),
        "backbone": redacted(tree["backbone"]),
        "image_size": tree["data"]["image_size"],
    }
    if how == "backbone":
        artifact = wandb.Artifact(f"backbone-{run_id}", type="model", metadata=about)
        with artifact.new_file("backbone.pt", mode="wb") as file:
            torch.save(saved.read_backbone(), file)
        return artifact
    artifact = wandb.Artifact(f"checkpoint-{run_id}", type="checkpoint", metadata=about)
    if how == "files":
        artifact.add_dir(str(saved.path))
        return artifact
    for path in sorted(saved.path.resolve().iterdir()):
        # No checksum: hashing a table of a hundred gigabytes would hold training up.
        artifact.add_reference(path.as_uri(), name=path.name, checksum=False)
    return artifact


def log_model(folder: str | Path, path: str | Path, aliases: Iterable[str] = ()) -> None:
    """Add an exported model to the W&B run of a run folder, as the artifact model-ID.

    Args:
        folder: The run folder; its config.yaml says how W&B is used.
        path: A file, or a folder with all it holds.
        aliases: Besides `latest`.

    Raises:
        ValueError: no run folder, no such file, W&B disabled, or online without credentials.
    """
    import wandb

    from mpsoftmax.track.wandb_run import open_run, staged_in

    folder, path = Path(folder), Path(path)
    config = load(folder / "config.yaml")
    if config.track.wandb == "disabled":
        raise ValueError(f"track.wandb: 'disabled' in {folder}; allowed: offline, online")
    if not path.exists():
        raise ValueError(f"path: {path}: no such file or folder")
    run = open_run(config, folder)
    try:
        with staged_in(folder):
            artifact = wandb.Artifact(f"model-{run.id}", type="model")
            if path.is_dir():
                artifact.add_dir(str(path))
            else:
                artifact.add_file(str(path))
            run.log_artifact(artifact, aliases=["latest", *aliases])
    finally:
        run.finish()
