"""Measurements in processes of their own: fresh ones for memory, gloo ranks for everything distributed.

A job is a function of a module of this package, called with plain values and returning plain values.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mpsoftmax.launcher import on_this_machine

# Freed memory goes back at once, so that the resident set is what is alive.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def in_ranks(job: str, arguments: Any, world: int) -> list[Any]:
    """Results of `package.module:function` in every rank of a gloo group, in rank order.

    Raises:
        RuntimeError: a rank failed; holds the end of what it printed.
    """
    return run(job, arguments, world, {})


def alone(job: str, arguments: Any) -> Any:
    """Result of `package.module:function` in a fresh process that returns freed memory at once."""
    return run(job, arguments, None, RETURN_MEMORY)[0]


def run(job: str, arguments: Any, world: int | None, more: dict[str, str]) -> list[Any]:
    """Start, wait, read the answers; without a world, one process that joins no group."""
    with tempfile.TemporaryDirectory(prefix="mpsoftmax-bench-") as folder:
        Path(folder, "job.json").write_text(json.dumps([job, arguments]))
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
            "OMP_NUM_THREADS": "1",
            **more,
        }
        own = ["-m", __name__, folder]
        command = [sys.executable, *own] if world is None else on_this_machine(world, own)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job} failed:\n{done.stderr[-3000:]}")
        return [json.loads(Path(folder, f"{r}.json").read_text()) for r in range(world or 1)]


def main(folder: str) -> None:
    """One process of a job."""
    import torch

    from mpsoftmax.comm import connect, disconnect, launched_by_torchrun

    torch.set_num_threads(1)
    job, arguments = json.loads(Path(folder, "job.json").read_text())
    module, _, name = job.partition(":")
    function = getattr(importlib.import_module(module), name)
    rank = 0
    if launched_by_torchrun():
        rank = connect(600.0).rank
    try:
        answer = function(arguments)
    finally:
        disconnect()
    Path(folder, f"{rank}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
