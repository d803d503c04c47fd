"""How close a full head step comes to the three matrix products it cannot avoid.

    python benchmarks/head_step.py --classes 100000 --dim 512 --batch 256 --dtype float32 bfloat16

One thread, one process, world size 1. A head step is forward, backward and `step()` with ArcFace and
SGD-momentum, all classes, `batch_capacity` given. The yardstick is the same three products in the same
dtype and nothing else, once in blocks of 1,024 classes and once in one call each, whichever is faster.
The three are timed in turn within every repetition, in CPU seconds of this process (page faults included),
and the ratio is taken within the repetition, so that other load on the machine disturbs little: median, least
and largest are printed. `extra_mib` is the peak of the process's resident set in a step beyond rows, momentum
and the kept exponentials (Linux).
"""

import argparse
import csv
import datetime
import gc
import os
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


def resident_mib(field: str) -> float:
    """Resident set of this process in MiB: VmRSS, now, or VmHWM, at its highest."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if field in line
    )
    return int(line.split()[1]) / 1024


def extra_mib(step: HeadStep, kept_mib: float) -> float:
    """Peak memory of the first step, which allocates what is kept, beyond that."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = resident_mib("VmRSS")
    step.run()
    return resident_mib("VmHWM") - before - kept_mib


def measure(classes: int, dim: int, batch: int, name: str, repeat: int) -> dict[str, object]:
    """Times of one dtype in seconds, medians; memory in MiB."""
    dtype = DTYPES[name]
    step = HeadStep(classes, dim, batch, dtype)
    extra = extra_mib(step, classes * batch * dtype.itemsize / 2**20)
    bare = BareProducts(classes, dim, batch, dtype)
    timed = {"blocked": bare.blocked, "whole": bare.whole, "head": step.run}
    times: dict[str, list[float]] = {key: [] for key in timed}
    for _ in range(repeat + 1):
        for key, function in timed.items():
            times[key].append(seconds(function))
    times = {key: values[1:] for key, values in times.items()}  # the first is a warm-up
    median = {key: statistics.median(values) for key, values in times.items()}
    products = min("blocked", "whole", key=lambda key: median[key])
    ratios = [a / b for a, b in zip(times["head"], times[products], strict=True)]
    return {
        "classes": classes,
        "dim": dim,
        "batch": batch,
        "dtype": name,
        "products_blocked_s": round(median["blocked"], 4),
        "products_whole_s": round(median["whole"], 4),
        "head_step_s": round(median["head"], 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "products_gflops": round(6e-9 * batch * classes * dim / median[products], 1),
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
    parser = argparse.ArgumentParser(description="Head step against its bare matrix products")
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
