"""How close a full head step comes to the three matrix products it cannot avoid.

    python benchmarks/head_step.py --classes 100000 --dim 512 --batch 256 --dtype float32 bfloat16

One thread, one process, world size 1. A head step is forward, backward and `step()` with ArcFace and
SGD-momentum, all classes, `batch_capacity` given. The yardstick is the same three products in the same
dtype and nothing else, once in blocks of 1,024 classes and once in one call each, whichever is faster.
The three are timed in turn within every repetition, in CPU seconds of this process (page faults included),
so that other load on the machine disturbs little; the ratio is that of the medians. `extra_mib` is the peak
of the process's resident set in a step beyond rows, momentum and the kept exponentials.
"""

import argparse
import csv
import datetime
import gc
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mpsoftmax import ArcFace, ModelParallelSoftmax, RowSGD

GEMM_BLOCK = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BareProducts:
    """Logits, feature gradient and class gradient as matrix products, buffers made beforehand."""

    def __init__(self, classes: int, dim: int, batch: int, dtype: torch.dtype) -> None:
        self.features = torch.randn(batch, dim).to(dtype)
        self.rows = torch.randn(classes, dim).to(dtype)
        self.logits = torch.zeros(classes, batch, dtype=dtype)
        self.by_features = torch.zeros(batch, dim, dtype=dtype)
        self.by_rows = torch.zeros(classes, dim, dtype=dtype)

    def blocked(self) -> None:
        """The three products block by block, the class gradient in a second sweep, as the head does."""
        for rows, logits in self._blocks(self.rows, self.logits):
            torch.mm(rows, self.features.T, out=logits)
            self.by_features.addmm_(logits.T, rows)
        for logits, by_rows in self._blocks(self.logits, self.by_rows):
            torch.mm(logits, self.features, out=by_rows)

    def whole(self) -> None:
        """The three products in one call each."""
        torch.mm(self.rows, self.features.T, out=self.logits)
        torch.mm(self.logits.T, self.rows, out=self.by_features)
        torch.mm(self.logits, self.features, out=self.by_rows)

    @staticmethod
    def _blocks(*tensors: Tensor) -> zip:
        return zip(*(tensor.split(GEMM_BLOCK) for tensor in tensors), strict=True)


class HeadStep:
    """A head, a fixed batch, and one training step on it."""

    def __init__(self, classes: int, dim: int, batch: int, dtype: torch.dtype) -> None:
        self.head = ModelParallelSoftmax(
            dim,
            classes,
            objective=ArcFace(64.0, 0.5),
            optimizer=RowSGD(lr=0.1),
            compute_dtype=dtype,
            batch_capacity=batch,
        )
        self.features = torch.randn(batch, dim, requires_grad=True)
        self.labels = torch.randint(0, classes, (batch,))

    def run(self) -> None:
        """Forward, backward, step."""
        self.features.grad = None
        self.head(self.features, self.labels).backward()
        self.head.step()


def seconds(function: Callable[[], None]) -> float:
    """CPU seconds of one call, user and system."""
    start = time.process_time()
    function()
    return time.process_time() - start


def resident_mib(peak: bool) -> float:
    """Resident set of this process in MiB, now or at its highest."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(classes: int, dim: int, batch: int, name: str, repeat: int) -> dict[str, object]:
    """Medians of one dtype, in seconds; memory in MiB."""
    dtype = DTYPES[name]
    step = HeadStep(classes, dim, batch, dtype)
    before = resident_mib(peak=False)
    step.run()
    kept = classes * batch * dtype.itemsize / 2**20
    extra = resident_mib(peak=True) - before - kept
    bare = BareProducts(classes, dim, batch, dtype)
    timed = {"blocked": bare.blocked, "whole": bare.whole, "head": step.run}
    times: dict[str, list[float]] = {key: [] for key in timed}
    for _ in range(repeat + 1):
        for key, function in timed.items():
            times[key].append(seconds(function))
    median = {key: statistics.median(values[1:]) for key, values in times.items()}  # 1 warm-up
    products = min(median["blocked"], median["whole"])
    return {
        "classes": classes,
        "dim": dim,
        "batch": batch,
        "dtype": name,
        "products_blocked_s": round(median["blocked"], 4),
        "products_whole_s": round(median["whole"], 4),
        "head_step_s": round(median["head"], 4),
        "ratio": round(median["head"] / products, 3),
        "products_gflops": round(6e-9 * batch * classes * dim / products, 1),
        "extra_mib": round(extra, 1),
        "repeat": repeat,
    }


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    cpu = next(
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "load_1min": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
        "cpu": cpu,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def append_row(path: Path, row: dict[str, object]) -> None:
    """One line of CSV, with a header if the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Measure and print one row per dtype."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path, help="append one CSV row per dtype")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in arguments.dtype:
        shape = (arguments.classes, arguments.dim, arguments.batch)
        row = {**measure(*shape, name, arguments.repeat), **machine()}
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        if arguments.out is not None:
            append_row(arguments.out, row)
        gc.collect()


if __name__ == "__main__":
    main()
