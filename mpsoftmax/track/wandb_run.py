"""Weights & Biases: one run a run folder, found again after a restart by the id in RUN/wandb/run_id.

Offline, every process of a run leaves a folder of its own, all with that id and all marked as resumed: `wandb
sync` joins them.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mpsoftmax.config import Config, to_tree
from mpsoftmax.track.protocol import (
    Callback,
    Ending,
    Evaluation,
    Line,
    RunStart,
    SavedCheckpoint,
    numbers_of,
)
from mpsoftmax.track.redaction import redacted
from mpsoftmax.track.wandb_artifacts import checkpoint_artifact
from mpsoftmax.track.wandb_plots import EvaluationTable, plots

STEP = "step"
HELD_BACK_BYTES = 2**17
"""Of lines; W&B writes its file in blocks of 32 KiB and queues some more."""


class WeightsAndBiases(Callback):
    """Metrics, configuration, tables, plots, artifacts and alerts of one run."""

    def on_start(self, run: RunStart) -> None:
        """Begin, or continue, the W&B run.

        Raises:
            ValueError: online without credentials.
        """
        self._config, self._folder = run.config, run.folder
        self._run = open_run(run.config, run.folder)
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)
        # W&B drops lines behind its newest one. A run that goes on from an older checkpoint passes some
        # steps again: they are appended, and drawn over STEP.
        self._offset = max(0, self._run.step - run.start)
        self._table = EvaluationTable()
        self._ended = run.folder / "wandb" / "ended"
        if run.start and not self._ended.exists():
            self._log_again(run.written)
        self._ended.unlink(missing_ok=True)

    def _log_again(self, written: Sequence[Line]) -> None:
        """The newest lines before a kill: W&B's own process holds some back, and they die with it."""
        size, newest = 0, []
        for line in reversed(written):
            size += len(json.dumps(line))
            if size > HELD_BACK_BYTES or line["step"] <= self._run.step:
                break
            newest.append(line)
        for line in reversed(newest):
            self._log(line["step"], numbers_of(line))

    def on_line(self, line: Line) -> None:
        """The numbers of a line: KIND/NAME, eval/SET/NAME, timing/NAME."""
        self._log(line["step"], numbers_of(line))

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """ROC, similarities, and the table of all evaluations."""
        self._table.add(evaluation)
        with staged_in(self._folder):
            self._log(evaluation.step, {**plots(evaluation), "evaluations": self._table.build()})

    def on_checkpoint(self, saved: SavedCheckpoint) -> None:
        """The checkpoint as an artifact, as track.artifacts says."""
        aliases = ["latest", f"step-{saved.step}", *(["best"] if saved.best else [])]
        with staged_in(self._folder):
            artifact = checkpoint_artifact(self._config, self._run.id, saved)
            if artifact is not None:
                self._run.log_artifact(artifact, aliases=aliases)

    def on_alert(self, title: str, text: str) -> None:
        """A W&B alert, which reaches people as their W&B settings say."""
        self._run.alert(title, text, level="ERROR", wait_duration=60)

    def on_end(self, ending: Ending) -> None:
        """Finish this process's part of the run."""
        self._run.summary["outcome"] = ending.outcome
        self._run.finish(exit_code=int(ending.outcome == "failed"))
        self._ended.touch()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log({**values, STEP: step}, step=step + self._offset)


def open_run(config: Config, folder: Path) -> Any:
    """The W&B run of a run folder, new or resumed.

    Raises:
        ValueError: online without credentials.
    """
    track = config.track
    if track.wandb == "online" and not has_credentials():
        raise ValueError(
            "track.wandb: 'online', but no WANDB_API_KEY is set and ~/.netrc names no W&B host; allowed "
            "without credentials: offline, disabled"
        )
    import wandb

    config_tree = redacted(to_tree(config))
    shown = config_tree["track"]
    return wandb.init(
        mode=track.wandb,
        entity=track.entity,
        project=track.project,
        group=shown["group"],
        tags=shown["tags"],
        name=shown["name"] or folder.resolve().name,
        id=run_id(folder),
        resume="allow",
        dir=str(folder),
        config=config_tree,
        settings=wandb.Settings(
            console="off",
            silent=True,
            x_disable_stats=track.wandb != "online",
            # Command line, git remote and environment may hold secrets; the configuration says the rest.
            x_disable_meta=True,
            disable_code=True,
            disable_git=True,
        ),
    )


@contextlib.contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Files on their way to W&B wait in RUN/wandb/data, not in a home folder that may not outlive the job.

    A WANDB_DATA_DIR of the user's own is left alone.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb" / "data").resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def run_id(folder: Path) -> str:
    """The id of a run folder's W&B run, made up once."""
    file = folder / "wandb" / "run_id"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:8])
    return file.read_text().strip()


def has_credentials() -> bool:
    """Whether W&B could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
