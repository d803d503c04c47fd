"""How long a step waits for a checkpoint: written in its way, and beside it.

    python benchmarks/faults/stall.py --classes 200000 --ranks 2

Both ways take turns in one training of random features; printed are medians, in milliseconds, of a step
without a checkpoint, of the call that saves, and of the two steps after it, which share the machine with the
writing. The load of the machine is printed with them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mpsoftmax import ArcFace, ModelParallelSoftmax
from mpsoftmax.comm import connect, disconnect
from mpsoftmax.launcher import on_this_machine
from mpsoftmax.train.checkpoint import Checkpoints
from mpsoftmax.train.saving import Saver

DIM, BATCH = 256, 64


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """One rank's share of the training."""
    comm = connect(600.0)
    torch.manual_seed(comm.rank)
    head = ModelParallelSoftmax(DIM, options.classes, objective=ArcFace())
    savers = {
        name: Saver(
            Checkpoints(folder / name, comm, keep=1),
            beside=name == "beside", max_failed=0, say=print, owned=lambda _: False,
            saved=lambda step, path: None,
        )
        for name in ("waiting", "beside")
    }  # fmt: skip
    times: dict[str, list[float]] = {}
    step = 0

    def timed(name: str, action) -> None:  # noqa: ANN001
        comm.barrier()
        began = time.perf_counter()
        action()
        comm.barrier()
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - began))

    def train() -> None:
        features = torch.randn(BATCH, DIM, requires_grad=True)
        head(features, torch.randint(options.classes, (BATCH,))).backward()
        head.step()

    train()
    for _ in range(options.rounds):
        for name, saver in savers.items():
            timed("step", train)
            step += 1
            tensors = {f"head.{key}": value for key, value in head.state_dict().items()}
            timed(f"{name}_save", lambda s=saver, t=tensors, n=step: s.save(n, t, {}))
            for _step in range(2):
                timed(f"{name}_steps_after", train)
            saver.settle()
    size = sum(path.stat().st_size for path in (folder / "waiting").rglob("*.distcp"))
    disconnect()
    found = {name: round(statistics.median(values), 1) for name, values in times.items()}
    return {
        "classes": options.classes,
        "checkpoint_mib": size >> 20,
        "load": os.getloadavg()[0],
        **found,
    }


def main() -> None:
    """Start the ranks, or be one."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--classes", type=int, default=200_000)
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--folder", type=Path, help="where to save; default: a temporary one")
    options = arguments.parse_args()
    if "RANK" in os.environ:
        found = measure(options, options.folder)
        if os.environ["RANK"] == "0":
            print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="stall-", dir=options.folder) as folder:
        job = [__file__, *sys.argv[1:], "--folder", folder]
        command = on_this_machine(options.ranks, job)
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


if __name__ == "__main__":
    main()
