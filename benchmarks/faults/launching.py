"""Trainings as processes that can be found and killed."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(command: Sequence[str], run: Path) -> "subprocess.Popen[bytes]":
    """The agent of a training into `run`, on CPUs with a thread a rank; what it prints goes to RUN.log."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    with (run.parent / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=variables)


def ranks_of(agent: "subprocess.Popen[bytes]", run: Path) -> list[int]:
    """Process ids of the ranks that an agent started; they have sessions of their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == agent.pid and f"run.dir={run}".encode() in words:
            found.append(int(path.name))
    return sorted(found)
