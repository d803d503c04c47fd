"""Peak memory of training steps beyond class rows, optimiser rows and the kept exponentials (Linux, CPU).

Each case runs in a fresh process whose allocator returns freed memory at once. Two steps run before it is
measured: they make torch's own buffers. The first step of the head measured allocates what is kept.
"""

import argparse
import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mpsoftmax.bench import plots, processes, record
from mpsoftmax.bench.case import Case, HeadStep, cases
from mpsoftmax.bench.resident import peak_bytes
from mpsoftmax.track.memory import resident_bytes

MIB = 2**20


def run(options: argparse.Namespace) -> None:
    """Measure, print, append, plot."""
    rows, machine = [], record.machine()
    for case in cases(options):
        peaks = [
            processes.alone(f"{__name__}:measured", asdict(case)) for _ in range(options.repeat)
        ]
        rows.append({**asdict(case), **summary(peaks), **machine})
        row = rows[-1]
        print(
            f"{case.label}: table {row['table_mib']} MiB, E {row['kept_mib']} MiB, beyond them "
            f"{row['extra_mib']} MiB ({row['extra_mib_min']}, {row['extra_mib_max']})"
        )
    folder = Path(options.out)
    record.append(folder / "bench_memory.csv", rows)
    parts = {
        name: [float(row[f"{name}_mib"]) for row in rows] for name in ("table", "kept", "extra")
    }
    labels = [case.label for case in cases(options)]
    plots.bars(folder / "bench_memory.png", "Memory of a step", "MiB", labels, parts)


def summary(peaks: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over fresh processes."""
    extras = sorted(peak["peak"] - peak["table"] - peak["kept"] for peak in peaks)
    return {
        "table_mib": round(peaks[0]["table"] / MIB, 1),
        "kept_mib": round(peaks[0]["kept"] / MIB, 1),
        "extra_mib": round(extras[len(extras) // 2] / MIB, 1),
        "extra_mib_min": round(extras[0] / MIB, 1),
        "extra_mib_max": round(extras[-1] / MIB, 1),
        "repeat": len(peaks),
    }


def measured(fields: dict[str, Any]) -> dict[str, float]:
    """Bytes of one case in this process: `peak` of head and steps, `table` and `kept` of it.

    What the process held before the head was made is not counted.
    """
    case = Case(**fields)
    warm_up(case)
    gc.collect()
    before = resident_bytes("VmRSS")
    step = HeadStep(case)

    def steps() -> None:
        for _ in range(3):
            step.run()

    peak = peak_bytes(steps) - before
    kept = step.head._spare
    table = step.head._table
    stored = table.num_rows * table.dim * table.dtype.itemsize * (1 + len(table.rule.buffers))
    return {
        "peak": peak,
        "table": stored if case.storage != "mapped" else 0,
        "kept": 0 if kept is None else kept.numel() * kept.element_size(),
    }


def warm_up(case: Case) -> None:
    """Two steps of a small head of the same kind: buffers of BLAS and autograd, code not yet loaded."""
    small = HeadStep(Case(**{**asdict(case), "classes": min(case.classes, 8 * case.batch)}))
    for _ in range(2):
        small.run()
    torch.mm(torch.ones(2048, case.dim), torch.ones(case.dim, case.batch))
