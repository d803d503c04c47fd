"""Saving beside the training, and disks that are full."""

import contextlib
import os
import shutil
import subprocess

import pytest
from small_runs import assert_equal_states, lines, settings, train

from mpsoftmax.comm import Comm
from mpsoftmax.train.checkpoint import Checkpoints
from mpsoftmax.train.loop import Trainer
from mpsoftmax.train.sums import damage

EVERY = ("train.checkpoint_every=3",)
MAPPED = (
    "head.candidates={kind: uniform, rate: 0.5}",
    "head.untouched=lazy",
    "head.storage=mapped",
)


@pytest.mark.parametrize("overrides", [(), MAPPED], ids=["device", "mapped"])
def test_both_ways_save_the_same(ranks, tmp_path, overrides):
    """Every checkpoint of a run, bit by bit, although the training went on while it was written."""
    keep = (*EVERY, "train.keep_checkpoints=9", *overrides)
    for name, beside in (("beside", "true"), ("waiting", "false")):
        ranks.run(
            train, 2, folder=tmp_path / name, overrides=(*keep, f"train.checkpoint_async={beside}")
        )
    assert lines(tmp_path / "beside") == lines(tmp_path / "waiting")
    for step in (3, 6, 9, 10):
        for name in ("beside", "waiting"):
            folder = tmp_path / name / "checkpoints"
            assert damage(folder / f"step-{step}") == []
            (folder / "latest").unlink()
            (folder / "latest").symlink_to(f"step-{step}")
        assert_equal_states(tmp_path / "beside", tmp_path / "waiting")


def problem_of(trainer):
    """What stops a training; None where it reaches its end."""
    try:
        trainer.run()
    except ValueError as error:
        return str(error)
    return None


def with_slow_writes(folder):
    """Steps at which saves began and ended, and what was said: each write takes as long as some steps."""
    import time

    import mpsoftmax.train.checkpoint as module

    trainer = Trainer(settings(folder, *EVERY, "train.max_failed_saves=1"), Comm())
    began, said, write = [], [], module.Checkpoints._write_tensors
    trainer.saver._say = said.append

    def slow(self, partial, tensors):
        step = int(partial.name.removeprefix("step-").removesuffix(".partial"))
        deadline = time.monotonic() + 5.0
        while trainer.step < min(step + 2, 10) and time.monotonic() < deadline:
            time.sleep(0.005)
        began.append((step, trainer.step))
        write(self, partial, tensors)

    module.Checkpoints._write_tensors = slow
    try:
        return began, said, problem_of(trainer)
    finally:
        module.Checkpoints._write_tensors = write


def test_training_goes_on_while_a_checkpoint_is_written(ranks, tmp_path):
    for began, said, problem in ranks.run(with_slow_writes, 2, folder=tmp_path):
        assert [step for step, _ in began] == [3, 6, 9, 10]
        assert all(reached >= step + 2 for step, reached in began[:2])
        assert not said
        assert problem is None


def failing(folder, steps):
    """Writes at these steps fail on rank 1; what was said, and the error."""
    import torch.distributed.checkpoint as dcp

    trainer = Trainer(settings(folder, *EVERY, "train.max_failed_saves=1"), Comm())
    said, write = [], dcp.FileSystemWriter.write_data
    trainer.saver._say = said.append

    def broken(self, plan, planner):
        if trainer.comm.rank == 1 and any(f"step-{n}.partial" in str(self.path) for n in steps):
            raise OSError(28, "No space left on device")
        return write(self, plan, planner)

    dcp.FileSystemWriter.write_data = broken
    try:
        return said, problem_of(trainer)
    finally:
        dcp.FileSystemWriter.write_data = write


def test_a_save_is_given_up_and_training_goes_on(ranks, tmp_path):
    for said, problem in ranks.run(failing, 2, folder=tmp_path / "a", steps=(6,)):
        assert problem is None
        assert len(said) == 1
        assert "step-6 was given up: rank 1: OSError: [Errno 28] No space left on device" in said[0]
        assert "the newest checkpoint is" in said[0]
        assert "step-3 (1 given up in a row" in said[0]
    folder = tmp_path / "a" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "latest",
        "step-10",
        "step-3",
        "step-9",
    ]
    ranks.run(train, 2, folder=tmp_path / "whole", overrides=EVERY)
    assert_equal_states(tmp_path / "a", tmp_path / "whole")


@pytest.mark.parametrize("steps", [(6, 9), (10,)], ids=["too many in a row", "the last one"])
def test_not_for_ever_and_never_the_last_one(ranks, tmp_path, steps):
    for said, problem in ranks.run(failing, 2, folder=tmp_path, steps=steps):
        assert len(said) == len(steps) - 1
        assert problem is not None
        assert f"step-{steps[-1]} was given up: rank 1: OSError: [Errno 28]" in problem
        kept = "step-3" if len(steps) > 1 else "step-9"
        assert problem.endswith(kept)
    checkpoints = Checkpoints(tmp_path / "checkpoints", Comm())
    assert damage(checkpoints.latest()) == []
    assert not list(checkpoints.folder.glob("*.partial"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def on_a_full_disk(folder, fill):
    """Checkpoints go to a disk that somebody else fills before step 6."""
    trainer = Trainer(settings(folder, *EVERY), Comm())
    said, save = [], trainer._save
    trainer.saver._say = said.append

    def filled(**options):
        if trainer.step == 6 and trainer.comm.rank == 0:
            with (fill / "other").open("wb") as file, contextlib.suppress(OSError):
                file.write(bytes(1 << 20))
        save(**options)
        if trainer.step == 6:
            trainer.saver.settle()
            if trainer.comm.rank == 0:
                (fill / "other").unlink()

    trainer._save = filled
    return trainer.run().steps, said


def test_a_disk_that_is_really_full(ranks, tmp_path, small_disk):
    (tmp_path / "run").mkdir()
    (small_disk / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(small_disk / "checkpoints")
    for steps, said in ranks.run(on_a_full_disk, 2, folder=tmp_path / "run", fill=small_disk):
        assert steps == 10
        assert len(said) == 1
        assert "step-6 was given up" in said[0]
        assert "No space left on device" in said[0]
    for path in (small_disk / "checkpoints").glob("step-*"):
        assert damage(path) == []
