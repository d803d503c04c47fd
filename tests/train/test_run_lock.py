"""Two trainings in one folder, and a training whose last evaluation fails."""

import subprocess
import sys
import time

import pytest
from small_pairs import write_pairs
from small_runs import settings, train

from mpsoftmax.comm import AgreedError, Comm
from mpsoftmax.train.checkpoint import Checkpoints
from mpsoftmax.train.loop import Trainer
from mpsoftmax.train.run_lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from mpsoftmax.train.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    with process.stdout:
        assert process.stdout.readline() == "held\n"
    return process


def test_a_second_training_is_refused_and_a_killed_one_lets_go(tmp_path):
    other = hold(tmp_path, 100)
    try:
        said = f"run.dir: {tmp_path} is in use by process {other.pid} on .* since 20"
        with pytest.raises(ValueError, match=said):
            RunLock(tmp_path, wait_s=0.2)
        with pytest.raises(AgreedError, match=said):
            Trainer(settings(tmp_path, "train.timeout_s=0.4"), Comm())
        assert not (tmp_path / "config.yaml").exists()
    finally:
        other.kill()
        other.wait()
    lock = RunLock(tmp_path, wait_s=0.0)
    lock.close()


def test_one_that_is_ending_is_waited_for(tmp_path):
    other, began = hold(tmp_path, 0.5), time.monotonic()
    lock = RunLock(tmp_path, wait_s=20.0)
    assert time.monotonic() - began > 0.2
    lock.close()
    other.wait()


def test_a_finished_training_lets_go(tmp_path):
    train(tmp_path, ("train.steps=3",))
    other = hold(tmp_path, 0.0)
    assert other.wait(20) == 0


def test_the_last_checkpoint_is_saved_before_the_last_evaluation(tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path / "pairs.bin")
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", (f"data.eval=[{pairs}]", "train.steps=3"))
    assert Checkpoints(tmp_path / "run" / "checkpoints", Comm()).latest().name == "step-3"
    monkeypatch.undo()
    train(tmp_path / "run", (f"data.eval=[{pairs}]", "train.steps=3"))
    assert '"kind": "eval", "step": 3' in (tmp_path / "run" / "metrics.jsonl").read_text()
