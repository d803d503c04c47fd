"""How the CPU time of a step grows with classes, batch, ranks and the sampling rate.

One factor at a time: the others stay at the first value given. All cases of a world size run in the same
processes, their steps in turn. The time of a step is the sum over its ranks.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mpsoftmax.bench import plots, processes, record
from mpsoftmax.bench.case import Case, HeadStep, cases
from mpsoftmax.bench.timing import interleaved

Varied = tuple[str, float, Case]
SAMPLERS = ("uniform", "dsoftmax_k")


def run(options: argparse.Namespace) -> None:
    """Measure, print, append, plot."""
    machine = record.machine()
    varied = list(variations(options))
    rows: list[dict[str, Any]] = []
    for world, group in itertools.groupby(sorted(varied, key=world_of), key=world_of):
        rows += measure(world, list(group), options.repeat)
    folder = Path(options.out)
    record.append(folder / "bench_scaling.csv", [{**row, **machine} for row in rows])
    panels: dict[str, dict[str, list]] = {}
    for row in rows:
        name = row["candidates"] if row["factor"] == "rate" else row["dtype"]
        points = panels.setdefault(row["factor"], {}).setdefault(name, [])
        points.append((row["value"], row["cpu_s"]))
    for factor, lines in panels.items():
        if factor == "rate":  # all classes are the sample of rate 1
            everything = lines.pop("all", [])
            for points in lines.values():
                points.extend(everything)
    plots.curves(folder / "bench_scaling.png", "A step, all ranks", "CPU seconds", panels)


def world_of(entry: Varied) -> int:
    """The number of ranks."""
    return entry[2].world


def variations(options: argparse.Namespace) -> Iterator[Varied]:
    """(factor, its value, case)."""
    base = replace(next(iter(cases(options))), world=options.world[0])
    for factor in ("classes", "batch", "world"):
        for value in getattr(options, factor):
            yield factor, value, replace(base, **{factor: value})
    yield "rate", 1.0, replace(base, candidates="all", rate=1.0, storage="device")
    for sampler in SAMPLERS:
        for rate in options.rate:
            yield "rate", rate, replace(base, candidates=sampler, rate=rate)


def measure(world: int, varied: list[Varied], repeat: int) -> list[dict[str, Any]]:
    """Lines of the table of one world size."""
    arguments = [[asdict(case) for _, _, case in varied], repeat]
    ranks = processes.in_ranks(f"{__name__}:measured", arguments, world)
    rows = []
    for number, (factor, value, case) in enumerate(varied):
        cpu = [sum(per_rank) for per_rank in zip(*(r[number]["cpu"] for r in ranks), strict=True)]
        wall = [max(per_rank) for per_rank in zip(*(r[number]["wall"] for r in ranks), strict=True)]
        products = sum(statistics.median(r[number]["products"]) for r in ranks)
        rows.append(
            {
                "factor": factor,
                "value": value,
                **asdict(case),
                "cpu_s": round(statistics.median(cpu), 5),
                "cpu_s_min": round(min(cpu), 5),
                "cpu_s_max": round(max(cpu), 5),
                "wall_s": round(statistics.median(wall), 5),
                "roofline_share": round(products / statistics.median(cpu), 3),
                "repeat": repeat,
            }
        )
        row = rows[-1]
        print(
            f"{factor}={value:g}: {case.label}: {row['cpu_s']} CPU s over {world} rank(s) "
            f"({row['cpu_s_min']}, {row['cpu_s_max']}), wall {row['wall_s']}; bare products "
            f"{row['roofline_share']:.0%} of it"
        )
    return rows


def measured(arguments: list[Any]) -> list[dict[str, list[float]]]:
    """Seconds of every repetition of every case in this rank, and of its bare products."""
    import torch

    from mpsoftmax.bench.yardsticks import BareProducts

    listed, repeat = arguments
    timed = {}
    for number, fields in enumerate(listed):
        case = Case(**fields)
        step = HeadStep(case)
        step.run()  # says how many candidates there are
        rows = int(step.head.last_stats["candidates"])
        bare = BareProducts(rows, case.dim, case.batch, getattr(torch, case.dtype))
        timed |= {f"step {number}": step.run, f"products {number}": bare.blocked}
    times = interleaved(timed, repeat)
    return [
        {
            "cpu": list(times[f"step {number}"].cpu_s),
            "wall": list(times[f"step {number}"].wall_s),
            "products": list(times[f"products {number}"].cpu_s),
        }
        for number in range(len(listed))
    ]
