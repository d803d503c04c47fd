"""Where the time of a step goes."""

from collections.abc import Sequence

from mpsoftmax.markup import Child, Markup, tag
from mpsoftmax.report.blocks import missing, section, table
from mpsoftmax.report.run import Run
from mpsoftmax.report.shapes import Stack, stacked
from mpsoftmax.report.words import MISSING, milliseconds, percent

PHASES = {
    "data": "waiting for the batch",
    "backbone": "forward and backward of the backbone, gradient averaging",
    "gather": "features and labels of all ranks, rows read ahead",
    "sweep": "the head's own arithmetic, forward and backward",
    "reduce": "sums and feature gradients over the ranks",
    "update": "class rows and backbone weights move",
}


def timing(runs: Sequence[Run]) -> Markup:
    """A bar a run, and what each colour is."""
    found = [(run, phases_of(run)) for run in runs]
    known = [(run, phases) for run, phases in found if phases]
    if not known:
        how = "Lines of metrics.jsonl have them since they have `timing`."
        return section("time", "A step's time", missing("No phases.", how))
    names = list(dict.fromkeys([*PHASES, *(name for _, phases in known for name in phases)]))
    names = [name for name in names if any(name in phases for _, phases in known)]
    stacks = [
        Stack(run.name, [(n, 1000 * phases.get(n, 0.0), k) for k, n in enumerate(names)])
        for run, phases in known
    ]
    rows: list[list[Child]] = []
    for k, name in enumerate(names):
        label = tag("span", tag("i", class_=f"swatch c{k % 6}"), name, class_="run-label")
        row: list[Child] = [label, PHASES.get(name, "")]
        for _, phases in known:
            total = sum(phases.values())
            part = phases.get(name)
            row += [milliseconds(part), MISSING if part is None else percent(part / total)]
        rows.append(row)
    head: list[Child] = ["Phase", "What"]
    for run, _ in known:
        head += [f"{run.name}, a step" if len(known) > 1 else "A step", "Share"]
    lead = (
        "Means over all logged steps of rank 0. Phases do not overlap; evaluations and checkpoints are not "
        "in them."
    )
    return section(
        "time",
        "A step's time",
        stacked(stacks, "ms"),
        table(head, rows, numbers=range(2, len(head))),
        lead=lead,
    )


def phases_of(run: Run) -> dict[str, float]:
    """Mean seconds a step by phase, over all logged steps."""
    sums: dict[str, float] = {}
    before, steps = 0, 0
    for line in run.of_kind("train"):
        timing = line.get("timing")
        phases = timing.get("phases_s") if isinstance(timing, dict) else None
        taken = line["step"] - before
        before = line["step"]
        if not isinstance(phases, dict):
            continue
        steps += taken
        for name, seconds in phases.items():
            if isinstance(seconds, int | float):
                sums[str(name)] = sums.get(str(name), 0.0) + taken * seconds
    return {name: total / steps for name, total in sums.items() if steps and total > 0}
