"""How often the ranks of a head talk, how many bytes they hand over, and for how long they wait.

Every collective of a step is called and awaited before anything else goes on: the share of its time hidden
behind other work is 0. Wall time, since a waiting rank uses no CPU; it includes waiting for slower ranks.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpsoftmax.bench import plots, processes, record
from mpsoftmax.bench.case import Case, HeadStep, cases
from mpsoftmax.comm import Comm

KINDS = {"all_gather": "all_gather", "all_reduce": "all_reduce_sum"}
KINDS["reduce_scatter"] = "reduce_scatter_sum"
SHARE_HIDDEN = 0.0


def run(options: argparse.Namespace) -> None:
    """Measure, print, append, plot."""
    machine = record.machine()
    rows = []
    for case in cases(options):
        job = [asdict(case), options.repeat]
        ranks = processes.in_ranks(f"{__name__}:measured", job, case.world)
        rows.append({**asdict(case), **summary(ranks), "repeat": options.repeat})
        say(case, rows[-1])
    folder = Path(options.out)
    record.append(folder / "bench_collectives.csv", [{**row, **machine} for row in rows])
    parts = {kind: [1e3 * row[f"{kind}_wall_s"] for row in rows] for kind in KINDS}
    labels = [case.label for case in cases(options)]
    title, unit = "Collectives of a step", "wall milliseconds"
    plots.bars(folder / "bench_collectives.png", title, unit, labels, parts)


def summary(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over steps and ranks; counts and bytes are the same in every step."""
    out: dict[str, Any] = {}
    for kind in KINDS:
        waits = [second for rank in ranks for second in rank["waits"][kind]]
        out[f"{kind}_calls"] = ranks[0]["calls"].get(kind, 0)
        out[f"{kind}_bytes"] = max(rank["bytes"].get(kind, 0) for rank in ranks)
        out[f"{kind}_wall_s"] = round(statistics.median(waits), 6)
        out[f"{kind}_wall_s_min"] = round(min(waits), 6)
        out[f"{kind}_wall_s_max"] = round(max(waits), 6)
    steps = [second for rank in ranks for second in rank["steps"]]
    out["step_wall_s"] = round(statistics.median(steps), 6)
    waited = sum(out[f"{kind}_wall_s"] for kind in KINDS)
    out["share_of_step"] = round(waited / out["step_wall_s"], 4)
    out["share_hidden"] = SHARE_HIDDEN
    return out


def say(case: Case, row: dict[str, Any]) -> None:
    """Print one case."""
    print(f"{case.label}: a step {row['step_wall_s']} s, {row['share_of_step']:.1%} in collectives")
    for kind in KINDS:
        print(
            f"  {kind}: {row[f'{kind}_calls']} call(s), {row[f'{kind}_bytes']:,} bytes a rank, "
            f"{1e3 * row[f'{kind}_wall_s']:.3f} ms ({1e3 * row[f'{kind}_wall_s_min']:.3f}, "
            f"{1e3 * row[f'{kind}_wall_s_max']:.3f})"
        )
    print("  hidden behind other work: 0 (every collective is awaited where it is called)")


def measured(arguments: list[Any]) -> dict[str, Any]:
    """One rank: calls and bytes of a step, seconds of every step and of its collectives."""
    fields, repeat = arguments
    step = HeadStep(Case(**fields))
    step.run()
    waited = Waits(step.head.comm)
    waits: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps: list[float] = []
    calls: dict[str, int] = {}
    num_bytes: dict[str, int] = {}
    for _ in range(repeat):
        step.head.comm.barrier()
        step.head.comm.reset_counters()
        waited.seconds.clear()
        start = time.perf_counter()
        step.run()
        steps.append(time.perf_counter() - start)
        for kind, seconds in waits.items():
            seconds.append(waited.seconds[kind])
        calls, num_bytes = dict(step.head.comm.calls), dict(step.head.comm.payload_bytes)
    return {"calls": calls, "bytes": num_bytes, "steps": steps, "waits": waits}


class Waits:
    """Adds up the wall seconds spent in each collective of one `Comm`."""

    def __init__(self, comm: Comm) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        for kind, method in KINDS.items():
            setattr(comm, method, self._timed(kind, getattr(comm, method)))

    def _timed(self, kind: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def timed(tensor: Any) -> Any:
            start = time.perf_counter()
            try:
                return collective(tensor)
            finally:
                self.seconds[kind] += time.perf_counter() - start

        return timed
