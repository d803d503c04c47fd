"""How often the ranks of a head talk, how many bytes they hand over, and for how long they wait.

A step's all-reduce is started before the sweep's last product and awaited after it; the others are awaited
where they are called, since what comes next needs them. Of the time a collective is on its way, what its
rank does not wait is hidden behind other work. Wall time, since a waiting rank uses no CPU; it includes
waiting for slower ranks.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mpsoftmax.bench import plots, processes, record
from mpsoftmax.bench.case import Case, HeadStep, cases
from mpsoftmax.comm import Comm, Pending

STARTED = {"all_gather": "start_all_gather", "all_reduce": "start_all_reduce_sum"}
KINDS = (*STARTED, "reduce_scatter")


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
        flights = [second for rank in ranks for second in rank["flights"][kind]]
        away = len(ranks) > 1  # a rank alone sends nothing
        out[f"{kind}_share_hidden"] = round(hidden(waits, flights), 4) if away else 0.0
    steps = [second for rank in ranks for second in rank["steps"]]
    out["step_wall_s"] = round(statistics.median(steps), 6)
    waited = sum(out[f"{kind}_wall_s"] for kind in KINDS)
    out["share_of_step"] = round(waited / out["step_wall_s"], 4)
    return out


def hidden(waits: list[float], flights: list[float]) -> float:
    """Share of the seconds on the way that nobody waited."""
    return 1.0 - sum(waits) / sum(flights) if sum(flights) else 0.0


def say(case: Case, row: dict[str, Any]) -> None:
    """Print one case."""
    print(f"{case.label}: a step {row['step_wall_s']} s, {row['share_of_step']:.1%} in collectives")
    for kind in KINDS:
        print(
            f"  {kind}: {row[f'{kind}_calls']} call(s), {row[f'{kind}_bytes']:,} bytes a rank, "
            f"{1e3 * row[f'{kind}_wall_s']:.3f} ms ({1e3 * row[f'{kind}_wall_s_min']:.3f}, "
            f"{1e3 * row[f'{kind}_wall_s_max']:.3f}) waited, "
            f"{row[f'{kind}_share_hidden']:.0%} of its way hidden behind other work"
        )


def measured(arguments: list[Any]) -> dict[str, Any]:
    """One rank: calls and bytes of a step, seconds of every step and of its collectives."""
    fields, repeat = arguments
    step = HeadStep(Case(**fields))
    step.run()
    waited = Waits(step.head.comm)
    waits: dict[str, list[float]] = {kind: [] for kind in KINDS}
    flights: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps: list[float] = []
    calls: dict[str, int] = {}
    num_bytes: dict[str, int] = {}
    for _ in range(repeat):
        step.head.comm.barrier()
        step.head.comm.reset_counters()
        waited.clear()
        start = time.perf_counter()
        step.run()
        steps.append(time.perf_counter() - start)
        for kind in KINDS:
            waits[kind].append(waited.seconds[kind])
            flights[kind].append(waited.on_the_way[kind])
        calls, num_bytes = dict(step.head.comm.calls), dict(step.head.comm.payload_bytes)
    return {"calls": calls, "bytes": num_bytes, "steps": steps, "waits": waits, "flights": flights}


class Waits:
    """Adds up, by kind, how long a rank waits in the collectives of one `Comm`, and how long they take."""

    def __init__(self, comm: Comm) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.on_the_way: defaultdict[str, float] = defaultdict(float)
        for kind, method in STARTED.items():
            setattr(comm, method, self._started(kind, getattr(comm, method)))
        comm.reduce_scatter_sum = self._awaited("reduce_scatter", comm.reduce_scatter_sum)  # type: ignore[method-assign]

    def clear(self) -> None:
        """Forget what was added up."""
        self.seconds.clear()
        self.on_the_way.clear()

    def _awaited(self, kind: str, collective: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def timed(tensor: Tensor) -> Tensor:
            start = time.perf_counter()
            out = collective(tensor)
            seconds = time.perf_counter() - start
            self._add(kind, waited=seconds, on_the_way=seconds)
            return out

        return timed

    def _started(
        self, kind: str, collective: Callable[[Tensor], Pending]
    ) -> Callable[..., Pending]:
        def timed(tensor: Tensor) -> Pending:
            start = time.perf_counter()
            pending = collective(tensor)
            handed_over = time.perf_counter() - start
            wait = pending.wait

            def timed_wait() -> Tensor:
                asked = time.perf_counter()
                out = wait()
                arrived = time.perf_counter()
                self._add(kind, waited=handed_over + arrived - asked, on_the_way=arrived - start)
                return out

            pending.wait = timed_wait  # type: ignore[method-assign]
            return pending

        return timed

    def _add(self, kind: str, *, waited: float, on_the_way: float) -> None:
        self.seconds[kind] += waited
        self.on_the_way[kind] += on_the_way
