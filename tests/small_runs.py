"""Small whole trainings for the tests, on synthetic images: stopped where wanted, and what they leave."""

import json
from pathlib import Path

import pytest
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config, load
from mpsoftmax.train.checkpoint import stored_tensors
from mpsoftmax.train.loop import Trainer
from mpsoftmax.train.sums import SUMS_FILE, sums_of

BASE = (
    "data.train=synthetic",
    "data.synthetic={num_classes: 23, images_per_class: 4}",
    "data.image_size=[16, 16]",
    "data.augment=[{kind: flip}, {kind: crop, pad: 2}]",
    "data.workers=0",
    "backbone={name: small, embedding_dim: 16}",
    "backbone.options={widths: [8, 16], depths: [1, 1], strides: [2, 2], norm: group}",
    "head.objective={kind: cosface, scale: 16, margin: 0.1}",
    "train.steps=10",
    "train.batch_size=12",
    "train.log_every=1",
    "train.schedule={kind: cosine, warmup: 0.2}",
    "track.wandb=disabled",
)


def settings(folder: Path, *overrides: str) -> Config:
    return load(None, [*BASE, f"run.dir={folder}", *overrides])


class Interrupted(Exception):
    """Stands for whatever ends a run between two steps."""


def train(folder: Path, overrides: tuple[str, ...] = (), stop_after: int | None = None):
    """One rank's run; `stop_after` steps it ends without a word."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    if stop_after is not None:
        step = trainer._step

        def interrupted(*arguments):
            if trainer.step == stop_after:
                raise Interrupted
            return step(*arguments)

        trainer._step = interrupted
        try:
            trainer.run()
        except Interrupted:
            return None
    return trainer.run().steps


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without timings."""
    out = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in out:
        line.pop("timing", None)
    return out


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if line["kind"] == "train"]


def summed(checkpoint: Path) -> None:
    """Sums that fit, as whoever changes a file of a checkpoint can make them."""
    files = [path for path in checkpoint.iterdir() if path.name != SUMS_FILE]
    (checkpoint / SUMS_FILE).write_text(json.dumps({"files": sums_of(files)}))


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint, whole, in this one process."""
    import torch.distributed.checkpoint as dcp

    from mpsoftmax.train.checkpoint import Reader, empty_like_stored

    path = (folder / "checkpoints" / "latest").resolve()
    tensors = {name: empty_like_stored(meta) for name, meta in stored_tensors(path).items()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(tensors, storage_reader=Reader(path))
    return tensors


def assert_equal_states(first: Path, second: Path) -> None:
    a, b = final_tensors(first), final_tensors(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
