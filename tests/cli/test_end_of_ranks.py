"""A command that ran on several ranks leaves no thread of theirs behind for the interpreter's end."""

import os
import subprocess
from pathlib import Path

import pytest
from small_runs import BASE

from mpsoftmax.launcher import on_this_machine

SCRIPT = """
import os
import sys
from pathlib import Path

from mpsoftmax.cli import main

def threads():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]

folder, *words = sys.argv[1:]
started = []
import mpsoftmax.train.loop as loop
initialised = loop.Trainer.__init__

def counted(self, *arguments):
    started.extend(threads())
    initialised(self, *arguments)

loop.Trainer.__init__ = counted
status = main(["train", f"run.dir={folder}", *words])
Path(f"{folder}-{os.environ['RANK']}.txt").write_text(f"{status} {bool(started)} {threads()}")
"""


@pytest.mark.parametrize(("words", "status"), [("train.steps=3", 0), ("train.batch_size=1", 2)])
def test_threads_of_process_groups_have_ended(tmp_path, words, status):
    """After a training, and after a mistake that is found with the ranks connected."""
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    done = subprocess.run(
        on_this_machine(2, [str(script), str(run), *BASE, words]),
        capture_output=True, text=True, timeout=110, cwd=tmp_path,
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert (tmp_path / f"run-{rank}.txt").read_text() == f"{status} True []"
