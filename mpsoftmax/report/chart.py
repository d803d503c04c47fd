"""Line charts as inline SVG, and the frame that every chart is drawn in.

A chart is complete as it stands. For read-outs the page's script finds the values of each line beside it (as
JSON) and their places in the line's own path. Colours are classes (c0 .. c5), so that the page decides.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mpsoftmax.markup import Markup, tag
from mpsoftmax.report.scales import Scale

WIDTH, HEIGHT = 400.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 388.0, 12.0, 184.0
MOST_POINTS = 600
NUM_COLOURS = 6


@dataclass(frozen=True)
class Line:
    """One line of a chart; a value of None is a gap.

    Attributes:
        name: What the read-out calls it.
        xs: Ascending.
        ys: As many.
        colour: Which of the page's colours.
        run: Which run it shows or hides with; None: always shown.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    colour: int = 0
    run: int | None = None


@dataclass(frozen=True)
class Mark:
    """A vertical line at a place of the x axis, and what it says."""

    x: float
    text: str
    run: int | None = None


@dataclass(frozen=True)
class Chart:
    """What a chart says beside its drawing."""

    title: str
    note: str = ""
    x_title: str = "step"
    legend: Sequence[tuple[str, int]] = field(default_factory=tuple)
    """Names and colours, where the chart has several of its own."""


def line_chart(
    chart: Chart, lines: Sequence[Line], x: Scale, y: Scale, marks: Sequence[Mark] = ()
) -> Markup:
    """A figure with one or several lines.

    Args:
        chart: Titles.
        lines: At least one.
        x: Of LEFT .. RIGHT.
        y: Of BOTTOM .. TOP.
        marks: Where something happened.
    """
    shown = [thinned(line) for line in lines]
    drawn = [
        *(mark_at(mark, x) for mark in marks if x.low <= mark.x <= x.high),
        *(drawn_line(line, x, y) for line in shown),
    ]
    values = [
        {
            "name": line.name,
            "colour": line.colour % NUM_COLOURS,
            "run": line.run,
            "x": [significant(v) for v, y_ in zip(line.xs, line.ys, strict=True) if y_ is not None],
            "y": [significant(v) for v in line.ys if v is not None],
        }
        for line in shown
    ]
    return figure(chart, axes(x, y, chart.x_title), drawn, values)


def figure(
    chart: Chart, frame: Markup, drawn: Sequence[Markup], values: Sequence[dict] = ()
) -> Markup:
    """Title, note, legend, drawing and the values for read-outs."""
    legend = [
        tag("span", tag("i", class_=f"swatch c{colour % NUM_COLOURS}"), name)
        for name, colour in chart.legend
    ]
    svg = tag(
        "svg",
        tag("title", f"{chart.title}. {chart.note}".strip()),
        frame,
        drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=chart.title,
    )
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", chart.title),
            tag("span", chart.note, class_="note") if chart.note else None,
            tag("span", legend, class_="legend") if legend else None,
        ),
        svg,
        data_block({"x": chart.x_title, "lines": list(values)}) if values else None,
        class_="chart",
    )


def data_block(tree: object) -> Markup:
    """JSON that no HTML parser can leave early."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Markup(f'<script type="application/json">{text}</script>')


def axes(x: Scale, y: Scale, x_title: str) -> Markup:
    """Grid, ticks and titles."""
    parts: list[Markup] = []
    for value in y.ticks:
        place = y.at(value)
        parts.append(tag("line", x1=f"{LEFT:g}", x2=f"{RIGHT:g}", y1=px(place), y2=px(place)))
        parts.append(
            tag("text", y.label(value), x=f"{LEFT - 6:g}", y=px(place + 3.5), class_="end")
        )
    parts.append(
        tag(
            "line",
            x1=f"{LEFT:g}",
            x2=f"{RIGHT:g}",
            y1=f"{BOTTOM:g}",
            y2=f"{BOTTOM:g}",
            class_="base",
        )
    )
    for value in x.ticks:
        place = x.at(value)
        parts.append(
            tag("line", x1=px(place), x2=px(place), y1=f"{BOTTOM:g}", y2=f"{BOTTOM + 4:g}")
        )
        parts.append(
            tag("text", x.label(value), x=px(place), y=f"{BOTTOM + 16:g}", class_="middle")
        )
    parts.append(
        tag("text", x_title, x=f"{(LEFT + RIGHT) / 2:g}", y=f"{HEIGHT - 5:g}", class_="middle")
    )
    return tag("g", parts, class_="axes")


def drawn_line(line: Line, x: Scale, y: Scale) -> Markup:
    """The path of a line; with few points each gets a dot."""
    classes = colour_class(line.colour, line.run)
    points = sum(value is not None for value in line.ys)
    path = tag("path", d=path_of(line, x, y), class_="line")
    if points > 24:
        return tag("g", path, class_=classes)
    dots = [
        tag("circle", cx=px(x.at(one)), cy=px(y.at(value)), r="2.6")
        for one, value in zip(line.xs, line.ys, strict=True)
        if value is not None
    ]
    return tag("g", path, dots, class_=classes)


def path_of(line: Line, x: Scale, y: Scale) -> str:
    """M and L with one pair of numbers a point; a gap begins anew."""
    words, begins = [], True
    for one, value in zip(line.xs, line.ys, strict=True):
        if value is None:
            begins = True
            continue
        words.append(f"{'M' if begins else 'L'}{px(x.at(one))} {px(y.at(value))}")
        begins = False
    return "".join(words)


def mark_at(mark: Mark, x: Scale) -> Markup:
    """A vertical line that says something when pointed at."""
    place = px(x.at(mark.x))
    return tag(
        "g",
        tag("title", mark.text),
        tag("line", x1=place, x2=place, y1=f"{TOP:g}", y2=f"{BOTTOM:g}"),
        class_="mark" if mark.run is None else f"mark run-{mark.run}",
    )


def colour_class(colour: int, run: int | None) -> str:
    """Classes of what has a colour and perhaps belongs to a run."""
    base = f"c{colour % NUM_COLOURS}"
    return base if run is None else f"{base} run-{run}"


def thinned(line: Line) -> Line:
    """At most MOST_POINTS points: of each stretch its least and its largest, so that spikes stay."""
    if len(line.xs) <= MOST_POINTS:
        return line
    kept: set[int] = {0, len(line.xs) - 1}
    stretches = MOST_POINTS // 3
    for k in range(stretches):
        low, high = (k * len(line.xs) // stretches, (k + 1) * len(line.xs) // stretches)
        finite = [i for i in range(low, high) if line.ys[i] is not None]
        if finite:
            kept |= {min(finite, key=lambda i: line.ys[i] or 0.0)}
            kept |= {max(finite, key=lambda i: line.ys[i] or 0.0)}
        if len(finite) < high - low:
            kept.add(next(i for i in range(low, high) if line.ys[i] is None))
    order = sorted(kept)
    return Line(
        line.name,
        [line.xs[i] for i in order],
        [line.ys[i] for i in order],
        line.colour,
        line.run,
    )


def px(value: float) -> str:
    """A place with one decimal."""
    return f"{value:.1f}"


def significant(value: float) -> float:
    """Six digits: what a read-out shows."""
    return float(f"{value:.6g}") if math.isfinite(value) else 0.0
