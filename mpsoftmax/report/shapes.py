"""Charts that are no lines: distributions, clouds with their medians, stacked bars."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsoftmax.markup import Markup, tag
from mpsoftmax.report.chart import (
    BOTTOM,
    LEFT,
    NUM_COLOURS,
    RIGHT,
    TOP,
    Chart,
    axes,
    colour_class,
    figure,
    px,
    significant,
)
from mpsoftmax.report.scales import Scale, linear
from mpsoftmax.report.words import number


@dataclass(frozen=True)
class Distribution:
    """Shares by bin: they add up to 1."""

    name: str
    shares: Sequence[float]
    colour: int = 0


def histogram(
    chart: Chart,
    edges: Sequence[float],
    distributions: Sequence[Distribution],
    threshold: float | None = None,
) -> Markup:
    """Distributions over the same bins, over each other; only bins that hold something are shown.

    Args:
        chart: Titles; the note says that the y axis is per cent.
        edges: n + 1, ascending.
        distributions: n shares each.
        threshold: Marked by a vertical line.
    """
    first, last = occupied(distributions)
    x = linear([edges[first], edges[last + 1]], LEFT, RIGHT, rounded=False)
    most = max(max(one.shares) for one in distributions)
    y = linear([0.0, 100 * most], BOTTOM, TOP)
    drawn = [drawn_distribution(one, edges, first, last, x, y) for one in distributions]
    if threshold is not None and x.low <= threshold <= x.high:
        place = px(x.at(threshold))
        drawn.append(
            tag(
                "g",
                tag("title", f"best threshold {threshold:.4f}"),
                tag("line", x1=place, x2=place, y1=f"{TOP:g}", y2=f"{BOTTOM:g}"),
                class_="mark",
            )
        )
    middles = [significant((edges[k] + edges[k + 1]) / 2) for k in range(first, last + 1)]
    values = [
        {
            "name": f"{one.name}, %",
            "colour": one.colour % NUM_COLOURS,
            "run": None,
            "x": middles,
            "y": [significant(100 * share) for share in one.shares[first : last + 1]],
        }
        for one in distributions
    ]
    return figure(chart, axes(x, y, chart.x_title), drawn, values)


def occupied(distributions: Sequence[Distribution]) -> tuple[int, int]:
    """First and last bin that any of them fills."""
    total = np.sum([one.shares for one in distributions], axis=0)
    filled = np.flatnonzero(total > 0)
    return (int(filled[0]), int(filled[-1])) if len(filled) else (0, len(total) - 1)


def drawn_distribution(
    one: Distribution, edges: Sequence[float], first: int, last: int, x: Scale, y: Scale
) -> Markup:
    """A filled outline of steps. The line through the bins' middles carries the read-out and is not seen."""
    outline = [f"M{px(x.at(edges[first]))} {px(BOTTOM)}"]
    middles = []
    for k in range(first, last + 1):
        height = px(y.at(100 * one.shares[k]))
        outline.append(f"V{height}H{px(x.at(edges[k + 1]))}")
        middle = x.at((edges[k] + edges[k + 1]) / 2)
        middles.append(f"{'L' if middles else 'M'}{px(middle)} {height}")
    outline.append(f"V{px(BOTTOM)}Z")
    return tag(
        "g",
        tag("path", d="".join(outline), class_="area"),
        tag("path", d="".join(middles), class_="line unseen"),
        class_=colour_class(one.colour, None),
    )


@dataclass(frozen=True)
class Cloud:
    """Points, with their median over bins of x."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0


def clouds(chart: Chart, found: Sequence[Cloud], x: Scale, y: Scale, edges: np.ndarray) -> Markup:
    """Points of several kinds; lines through the medians of each bin of x that holds any.

    Args:
        chart: Titles.
        found: The kinds.
        x: Of LEFT .. RIGHT.
        y: Of BOTTOM .. TOP.
        edges: float64, of the bins.
    """
    drawn: list[Markup] = []
    values = []
    for cloud in found:
        spots = "".join(
            f"M{px(x.at(a))} {px(y.at(b))}h0" for a, b in zip(cloud.xs, cloud.ys, strict=True)
        )
        drawn.append(
            tag("g", tag("path", d=spots, class_="spots"), class_=colour_class(cloud.colour, None))
        )
    for cloud in found:
        middles, medians = binned_medians(np.array(cloud.xs), np.array(cloud.ys), edges)
        places = [f"{px(x.at(a))} {px(y.at(b))}" for a, b in zip(middles, medians, strict=True)]
        dots = [
            tag("circle", cx=place.split()[0], cy=place.split()[1], r="3.2") for place in places
        ]
        path = tag("path", d="M" + "L".join(places), class_="line")
        drawn.append(tag("g", path, dots, class_=colour_class(cloud.colour, None) + " medians"))
        values.append(
            {
                "name": f"{cloud.name}, median",
                "colour": cloud.colour % NUM_COLOURS,
                "run": None,
                "x": [significant(v) for v in middles],
                "y": [significant(v) for v in medians],
            }
        )
    return figure(chart, axes(x, y, chart.x_title), drawn, values)


def binned_medians(
    xs: np.ndarray, ys: np.ndarray, edges: np.ndarray
) -> tuple[list[float], list[float]]:
    """Geometric middle of the x in each bin that holds any, and the median of their y."""
    bins = np.digitize(xs, edges)
    middles, medians = [], []
    for one in np.unique(bins):
        inside = bins == one
        middles.append(float(np.exp(np.log(xs[inside]).mean())))
        medians.append(float(np.median(ys[inside])))
    return middles, medians


@dataclass(frozen=True)
class Stack:
    """One bar of parts, by colour."""

    name: str
    parts: Sequence[tuple[str, float, int]]
    """Name, size, colour."""


def stacked(stacks: Sequence[Stack], label: str) -> Markup:
    """Bars one below the other, to one scale, as HTML: their words must wrap and stay readable on a phone.

    Args:
        stacks: At least one.
        label: Says what the sizes are, with their unit, behind each part's size.
    """
    most = max(sum(size for _, size, _ in stack.parts) for stack in stacks) or 1.0
    rows = []
    for stack in stacks:
        pieces = [
            tag(
                "span",
                title=f"{name}: {number(size, 3)} {label}",
                class_=f"piece c{colour % NUM_COLOURS}",
                style=f"width:{100 * size / most:.2f}%",
            )
            for name, size, colour in stack.parts
            if size > 0
        ]
        total = sum(size for _, size, _ in stack.parts)
        rows.append(
            tag(
                "div",
                tag("span", stack.name, class_="bar-name"),
                tag("div", pieces, class_="bar"),
                tag("span", f"{number(total, 3)} {label}", class_="bar-total"),
                class_="bar-row",
            )
        )
    return tag("div", rows, class_="bars")
