"""Single classes: size against quality, rows against centres, the classes that most need a look."""

import math
from collections.abc import Sequence

import numpy as np

from mpsoftmax.markup import Child, Markup, tag
from mpsoftmax.report.blocks import beside, details, grid, missing, section, table
from mpsoftmax.report.chart import BOTTOM, LEFT, RIGHT, TOP, Chart
from mpsoftmax.report.run import Run, Tree
from mpsoftmax.report.scales import linear, logarithmic
from mpsoftmax.report.shapes import Cloud, Distribution, clouds, histogram
from mpsoftmax.report.words import count, fixed

LISTED = 10
LOOSE = "Least alike inside: mixed identities, or images that say little."
NEAR = "Nearest to another class: one identity under two names?"
ANGLE_BINS = 45
HOW = (
    "RUN/report/classes.json is missing: it is written when a training with track.report: true ends. "
    "mpsoftmax report RUN --recompute makes it from the checkpoint."
)


def classes(runs: Sequence[Run]) -> Markup:
    """Charts of every run; tables of what to look at."""
    parts: list[Child] = []
    sizes: list[Markup] = []
    angles: list[Markup] = []
    for run in runs:
        if run.classes is None:
            parts.append(missing(f"No classes of {run.name}.", HOW))
            continue
        suffix = f", {run.name}" if len(runs) > 1 else ""
        sizes.append(size_chart(run.classes, f"Class size and quality{suffix}"))
        angles.append(angle_chart(run.classes, f"Class row to class centre{suffix}"))
        parts.append(lists(run.classes, suffix))
    known = next((run.classes for run in runs if run.classes), None)
    lead = sample_text(known) if known else ""
    return section(
        "classes", "Classes", grid([*sizes, *angles]) if sizes else None, parts, lead=lead
    )


def sample_text(tree: Tree) -> str:
    """What was looked at."""
    num = len(tree["classes"]["id"])
    among = "the rows of all classes" if tree.get("among") == "table" else "the sample's centres"
    return (
        f"{count(num, 'class')} of {tree['num_classes']:,}, drawn evenly over their sizes, "
        f"{tree['sampled_images']:,} training images, not augmented, step {tree['step']:,}. A centre is "
        f"the mean of a class's images; the nearest other class is looked for among {among}."
    )


def size_chart(tree: Tree, title: str) -> Markup:
    """Cosine within the class and to the nearest other one, over the number of its images."""
    columns = tree["classes"]
    found = []
    for name, key, colour in (
        ("within the class", "within", 0),
        ("nearest other", "other_cosine", 1),
    ):
        known = [
            (size, value)
            for size, value in zip(columns["images"], columns[key], strict=True)
            if value is not None
        ]
        if known:
            found.append(Cloud(name, [a for a, _ in known], [b for _, b in known], colour))
    sizes, values = columns["images"], [value for cloud in found for value in cloud.ys]
    most = max(2, *sizes) if len(sizes) > 1 else max(2, sizes[0])
    least = min(sizes)
    x = logarithmic(least * 0.9, most * 1.1, LEFT, RIGHT, base=2, wanted=9)
    y = linear([*values, 1.0], BOTTOM, TOP)
    edges = 2.0 ** np.arange(1, math.ceil(math.log2(most)) + 1)
    chart = Chart(
        title,
        "cosine; lines: medians",
        "images of the class",
        legend=tuple((cloud.name, cloud.colour) for cloud in found),
    )
    return clouds(chart, found, x, y, edges)


def angle_chart(tree: Tree, title: str) -> Markup:
    """How far rows of the table are from the means of their classes' images."""
    angles = [math.degrees(a) for a in tree["classes"]["angle_rad"] if a is not None]
    edges = np.linspace(0.0, 180.0, ANGLE_BINS + 1)
    counts = np.histogram(angles, edges)[0]
    shares = (counts / max(1, counts.sum())).tolist()
    note = f"% of classes; median {np.median(angles):.1f}°" if angles else ""
    chart = Chart(title, note, "angle, degrees")
    return histogram(chart, edges.tolist(), [Distribution("classes", shares, 0)])


def lists(tree: Tree, suffix: str) -> Markup:
    """Classes least alike inside, and nearest to another one."""
    columns = tree["classes"]
    rows = list(
        zip(
            columns["name"],
            columns["images"],
            columns["within"],
            columns["other_name"],
            columns["other_cosine"],
            strict=True,
        )
    )
    loose = sorted((row for row in rows if row[2] is not None), key=lambda row: row[2])
    near = sorted((row for row in rows if row[4] is not None), key=lambda row: -row[4])
    head = ["Class", "Images", "Within", "Nearest other", "Its cosine"]
    numbers = (1, 2, 4)

    def listed(found: list) -> list[list[Child]]:
        return [
            [str(name), f"{size:,}", fixed(within, 3), str(other), fixed(cosine, 3)]
            for name, size, within, other, cosine in found[:LISTED]
        ]

    return details(
        f"Classes to look at{suffix}",
        beside(
            [
                tag("p", LOOSE, class_="note"),
                table(head, listed(loose), numbers=numbers),
            ],
            [
                tag("p", NEAR, class_="note"),
                table(head, listed(near), numbers=numbers),
            ],
        ),
        opened=not suffix,
    )
