"""How close a full head step comes to the three matrix products it cannot avoid, and what it replaces.

A step is forward, backward and `step()` with ArcFace. The yardstick is the same three products in the same
dtype and nothing else, once in blocks of 1,024 classes and once in one call each, whichever is faster.
"""

import argparse
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from mpsoftmax.bench import plots, record
from mpsoftmax.bench.case import Case, HeadStep, cases
from mpsoftmax.bench.incumbent import Incumbent
from mpsoftmax.bench.timing import Times, interleaved, ratios, spread
from mpsoftmax.bench.yardsticks import BareProducts, PlainSoftmax
from mpsoftmax.comm import connect, disconnect

NAMES = ("head", "plain", "incumbent", "blocked", "whole")


def run(options: argparse.Namespace) -> None:
    """Measure, print, append, plot."""
    rows, machine = [], record.machine()
    if options.incumbent is not None:
        if options.candidates not in ("all", "uniform"):
            raise ValueError(
                f"--candidates: {options.candidates} with --incumbent; allowed: all, uniform: PartialFC_V2 "
                "draws no others"
            )
        connect(600.0)  # PartialFC_V2 needs a process group
    try:
        for case in cases(options):
            rows.append({**measure(case, options.repeat, options.incumbent), **machine})
            say(case, rows[-1])
            gc.collect()
    finally:
        disconnect()
    folder = Path(options.out)
    record.append(folder / "bench_head.csv", rows)
    parts = {name: [float(row[f"{name}_cpu_s"] or 0) for row in rows] for name in NAMES}
    if options.incumbent is None:
        del parts["incumbent"]
    labels = [case.label for case in cases(options)]
    plots.bars(folder / "bench_head.png", "A step", "CPU seconds", labels, parts)


def measure(case: Case, repeat: int, incumbent: str | None) -> dict[str, object]:
    """One line of the table."""
    step = HeadStep(case)
    step.run()  # says how many candidates there are
    rows = int(step.head.last_stats["candidates"])
    bare = BareProducts(rows, case.dim, case.batch, getattr(torch, case.dtype))
    timed: dict[str, Callable[[], object]] = {
        "blocked": bare.blocked,
        "whole": bare.whole,
        "head": step.run,
        "plain": PlainSoftmax(case).run,
    }
    if incumbent is not None:
        timed["incumbent"] = Incumbent(Path(incumbent), case).run
    times = interleaved(timed, repeat)
    products = min(times["blocked"], times["whole"], key=lambda found: found.cpu)
    work = 6.0 * case.batch * rows * case.dim
    return {
        **vars(case),
        "candidates_drawn": rows,
        **columns(times),
        **spread("ratio", ratios(times["head"], products)),
        "roofline_share": round(products.cpu / times["head"].cpu, 3),
        "products_gflops": round(work / products.cpu / 1e9, 1),
        **spread("plain_over_head", ratios(times["plain"], times["head"])),
        **incumbent_columns(times),
        "repeat": repeat,
    }


def columns(times: dict[str, Times]) -> dict[str, object]:
    """Times of everything; empty where it was not asked for."""
    out: dict[str, object] = {}
    for name in NAMES:
        some = times.get(name)
        empty = dict.fromkeys(times["head"].row(name), "")
        out |= empty if some is None else some.row(name)
    return out


def incumbent_columns(times: dict[str, Times]) -> dict[str, object]:
    """How many times as long the incumbent takes; empty where it was not asked for."""
    name = "incumbent_over_head"
    if "incumbent" not in times:
        return {name: "", f"{name}_min": "", f"{name}_max": ""}
    return dict(spread(name, ratios(times["incumbent"], times["head"])))


def say(case: Case, row: record.Row) -> None:
    """Print one line of the table."""
    drawn = f"{row['candidates_drawn']:,} candidates"
    print(f"{case.label}  (CPU seconds, medians; {drawn}; kernel {case.kernel})")
    print(
        f"  head {row['head_cpu_s']}  bare products {row['blocked_cpu_s']} blocked, "
        f"{row['whole_cpu_s']} whole ({row['products_gflops']} GFLOP/s)"
    )
    print(
        f"  head / products {row['ratio']} ({row['ratio_min']}, {row['ratio_max']}): "
        f"{float(str(row['roofline_share'])):.0%} of the roofline"
    )
    print(
        f"  plain autograd, all classes: {row['plain_cpu_s']}, {row['plain_over_head']} x the head"
    )
    if row["incumbent_over_head"] != "":
        print(
            f"  PartialFC_V2 (float32): {row['incumbent_cpu_s']}, {row['incumbent_over_head']} x the head"
        )
