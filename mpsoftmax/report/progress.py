"""Curves of training: everything that was logged, one chart a number, one line a run."""

from collections.abc import Iterable, Sequence

from mpsoftmax.markup import Markup, tag
from mpsoftmax.report import history
from mpsoftmax.report.blocks import grid, missing, section
from mpsoftmax.report.catalogue import GROUPS, Points, figure_of, points_of
from mpsoftmax.report.chart import BOTTOM, LEFT, RIGHT, TOP, Chart, Line, Mark, line_chart
from mpsoftmax.report.run import Run
from mpsoftmax.report.scales import linear
from mpsoftmax.report.words import byte_unit, count, number

Series = tuple[int, str, Points]
"""Number and name of a run, its points."""
MOST_CHARTS = 40
"""Datasets beyond number have a mined share each."""


def progress(runs: Sequence[Run]) -> Markup:
    """Charts in groups; what never changed is said in words."""
    found = [points_of(run) for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    if not keys:
        return section(
            "training",
            "Training",
            missing("metrics.jsonl is empty.", "It gets a line every train.log_every steps."),
        )
    marks = [mark for k, run in enumerate(runs) for mark in events(run, k)]
    still, moving = split_constant(keys, found)
    groups = []
    for group in GROUPS:
        charts = [
            one_chart(key, found, runs, marks) for key in moving if figure_of(key).group == group
        ]
        if charts:
            groups += [tag("h3", group), grid(charts[:MOST_CHARTS])]
    lead = "One point a line of metrics.jsonl; of speeds without the first line after each start."
    if marks:
        lead += " Dashed verticals: restarts and skipped steps."
    bad = sum(value is None for one in found for _, value in one.get("loss", ()))
    if bad:
        lead += f" Gaps: {count(bad, 'logged loss')} not finite."
    return section("training", "Training", groups, constants(still), lead=lead)


def events(run: Run, number: int) -> list[Mark]:
    """Restarts and skipped steps of a run."""
    found = [
        Mark(step, f"{run.name}: went on from step {step}", number)
        for step in history.restarts(run)
    ]
    found += [
        Mark(line["step"], f"{run.name}: step {line['step']} skipped", number)
        for line in run.of_kind("skip")[:200]
    ]
    return found


def split_constant(
    keys: Iterable[str], found: Sequence[dict[str, Points]]
) -> tuple[list[tuple[str, float]], list[str]]:
    """Numbers that had one value throughout, with it; names of the others."""
    still, moving = [], []
    for key in keys:
        values = {value for one in found for _, value in one.get(key, ())}
        only = next(iter(values))
        if len(values) == 1 and only is not None and key not in ("loss", "lr"):
            still.append((key, only))
        elif values != {None}:
            moving.append(key)
    return still, moving


def constants(still: Sequence[tuple[str, float]]) -> Markup | None:
    """What never changed, in a sentence."""
    if not still:
        return None
    words = ", ".join(
        f"{figure_of(key).title.lower()} {amount(key, value)}" for key, value in still
    )
    return tag("p", f"Constant throughout: {words}.", class_="note")


def amount(key: str, value: float) -> str:
    """A number with its unit, where it is bytes."""
    if not key.endswith("_bytes"):
        return number(value)
    size, unit = byte_unit(value)
    return f"{number(value / size)} {unit}"


def one_chart(
    key: str, found: Sequence[dict[str, Points]], runs: Sequence[Run], marks: Sequence[Mark] = ()
) -> Markup:
    """The chart of one number."""
    figure = figure_of(key)
    series = [
        (k, run.name, one[key])
        for k, (run, one) in enumerate(zip(runs, found, strict=True))
        if key in one
    ]
    note = figure.note
    if key.endswith("_bytes"):
        series, unit = in_byte_unit(series)
        note = f"{unit}, {note}" if note else unit
    elif key.startswith("timing."):
        series = [(k, name, warmed_up(runs[k], points)) for k, name, points in series]
    return chart_of_points(Chart(figure.title, note), series, marks)


def in_byte_unit(series: Sequence[Series]) -> tuple[list[Series], str]:
    """Bytes in the unit that suits the largest, and its name."""
    most = max(value for _, _, points in series for _, value in points if value is not None)
    size, unit = byte_unit(most)
    scaled = [
        (k, name, [(step, None if value is None else value / size) for step, value in points])
        for k, name, points in series
    ]
    return scaled, unit


def warmed_up(run: Run, points: Points) -> Points:
    """Without the first line after each start, which holds the start of workers and would set the scale."""
    starts = {0, *history.restarts(run)}
    first = {min((s for s, _ in points if s > start), default=None) for start in starts}
    left = [point for point in points if point[0] not in first]
    return left if len(left) >= len(points) / 2 else points


def chart_of_points(chart: Chart, series: Sequence[Series], marks: Sequence[Mark] = ()) -> Markup:
    """Points over the steps from 0, one line a run."""
    lines = [
        Line(name, [step for step, _ in points], [value for _, value in points], k, k)
        for k, name, points in series
    ]
    steps = [step for line in lines for step in line.xs]
    values = [value for line in lines for value in line.ys if value is not None]
    x = linear([0, *steps], LEFT, RIGHT, whole=True, rounded=False)
    return line_chart(chart, lines, x, linear(values, BOTTOM, TOP), marks)
