"""Evaluation: figures over the steps, ROC and DET, how similarities are distributed, the hardest pairs."""

from collections.abc import Iterator, Sequence
from typing import Any

from mpsoftmax.markup import Markup, tag
from mpsoftmax.report.blocks import details, grid, missing, run_label, section
from mpsoftmax.report.catalogue import evaluation_points, figure_of
from mpsoftmax.report.chart import BOTTOM, LEFT, RIGHT, TOP, Chart, Line, line_chart
from mpsoftmax.report.progress import chart_of_points
from mpsoftmax.report.run import Run, Tree
from mpsoftmax.report.scales import deviates, linear, logarithmic
from mpsoftmax.report.shapes import Distribution, histogram
from mpsoftmax.report.words import fixed

NOT_DRAWN = ("accuracy_std",)
HOW = (
    "RUN/report/ holds none of this set: they are kept while training with track.report: true. mpsoftmax "
    "report RUN --recompute makes them from the checkpoint."
)
HARDEST = {
    "genuine": (
        "Least similar pairs of one class",
        "Look for wrong labels, and for what the model cannot do yet.",
    ),
    "impostor": (
        "Most similar pairs of different classes",
        "Look for one identity under two names.",
    ),
}


def judged(runs: Sequence[Run]) -> Markup:
    """One part a set."""
    names = set_names(runs)
    if not names:
        how = "Name .bin files, pair lists or glyph sets in data.eval; mpsoftmax evaluate judges a run."
        return section("evaluation", "Evaluation", missing("Nothing was evaluated.", how))
    return section("evaluation", "Evaluation", [of_set(name, runs) for name in names])


def set_names(runs: Sequence[Run]) -> list[str]:
    """Sets that any run was judged on, in their order."""
    return list(
        dict.fromkeys(name for run in runs for name in [*evaluation_points(run), *run.evaluations])
    )


def of_set(name: str, runs: Sequence[Run]) -> Markup:
    """Everything about one set."""
    known = [
        (k, run, run.evaluations[name]) for k, run in enumerate(runs) if name in run.evaluations
    ]
    charts = list(over_steps(name, runs))
    if known:
        charts += [chart for chart in (roc(known), det(known)) if chart is not None]
        charts += [similarities(run, tree, len(runs) > 1) for _, run, tree in known]
    return tag(
        "div",
        tag("h3", name),
        pairs_note(known),
        grid(charts) if charts else None,
        [hardest(k, run, tree, len(runs) > 1) for k, run, tree in known],
        None if known else missing("No curves and no pairs.", HOW),
        class_="set-part",
    )


def pairs_note(known: Sequence[tuple[int, Run, Tree]]) -> Markup | None:
    """How many pairs, and at which step."""
    if not known:
        return None
    result = known[0][2]["verification"]
    steps = sorted({tree["step"] for _, _, tree in known})
    text = (
        f"{result['num_genuine']:,} genuine and {result['num_impostors']:,} impostor pairs; curves and pairs "
        f"of step {', '.join(f'{step:,}' for step in steps)}."
    )
    return tag("p", text, class_="note")


def over_steps(name: str, runs: Sequence[Run]) -> Iterator[Markup]:
    """A chart a figure that was measured more than once."""
    found = [evaluation_points(run).get(name, {}) for run in runs]
    for key in dict.fromkeys(key for one in found for key in one if key not in NOT_DRAWN):
        series = [(k, runs[k].name, one[key]) for k, one in enumerate(found) if key in one]
        known = [value for _, _, points in series for _, value in points if value is not None]
        if known and max(len(points) for _, _, points in series) > 1:
            figure = figure_of(key)
            yield chart_of_points(Chart(figure.title, figure.note), series)


def rates(tree: Tree) -> list[tuple[float, float]]:
    """(FAR, TAR) where both say something on a logarithmic axis."""
    curves = tree["curves"]
    return [(far, tar) for far, tar in zip(curves["far"], curves["tar"], strict=True) if far > 0]


def roc(known: Sequence[tuple[int, Run, Tree]]) -> Markup:
    """True accept rate over the logarithm of the false accept rate."""
    points = [(k, run, rates(tree)) for k, run, tree in known]
    low = min(far for _, _, found in points for far, _ in found)
    least = min(tar for _, _, found in points for _, tar in found)
    x = logarithmic(min(low, 0.1), 1.0, LEFT, RIGHT)
    y = linear([least, 1.0], BOTTOM, TOP)
    lines = [
        Line(run.name, [far for far, _ in found], [tar for _, tar in found], k, k)
        for k, run, found in points
    ]
    chart = Chart("ROC", "true over false accept rate", "false accept rate")
    return line_chart(chart, lines, x, y)


def det(known: Sequence[tuple[int, Run, Tree]]) -> Markup | None:
    """False reject over false accept rate, both by normal deviates; None where no pair is wrong."""
    lines, least = [], 1.0
    for k, run, tree in known:
        # A rate of none has no normal deviate: the curve ends where no pair is wrong any more.
        found = [(far, 1 - tar) for far, tar in rates(tree) if far < 1 and tar < 1]
        if not found:
            continue
        least = min([least, *(min(pair) for pair in found)])
        lines.append(Line(run.name, [far for far, _ in found], [miss for _, miss in found], k, k))
    if not lines:
        return None
    low = max(min(least, 0.01), 1e-6)
    chart = Chart("DET", "false reject over false accept rate", "false accept rate")
    return line_chart(
        chart, lines, deviates(low, 0.97, LEFT, RIGHT), deviates(low, 0.97, BOTTOM, TOP)
    )


def similarities(run: Run, tree: Tree, several: bool) -> Markup:
    """Genuine and impostor similarities, each as shares of its kind."""
    curves, result = tree["curves"], tree["verification"]
    kinds = [
        Distribution(kind, [n / sum(curves[kind]) for n in curves[kind]], colour)
        for kind, colour in (("impostor", 1), ("genuine", 0))
    ]
    title = f"Similarities, {run.name}" if several else "Similarities"
    chart = Chart(
        title,
        f"% of each kind; best threshold {fixed(result['threshold'], 3)}",
        "cosine",
        legend=(("genuine", 0), ("impostor", 1)),
    )
    return histogram(chart, curves["edges"], kinds, result["threshold"])


def hardest(number: int, run: Run, tree: Tree, several: bool) -> Markup:
    """Pictures of the pairs the model gets most wrong."""
    parts = []
    for kind, (title, hint) in HARDEST.items():
        pairs = tree["hardest"][kind]
        if pairs:
            parts.append(tag("h4", title, " ", tag("span", hint, class_="note")))
            parts.append(tag("div", [pair_card(pair) for pair in pairs], class_="pairs"))
    if several:
        return tag(
            "div",
            details(f"Hardest pairs, {run.name}", run_label(run.name, number), parts),
            class_=f"run-{number}",
        )
    return tag("div", parts)


def pair_card(pair: dict[str, Any]) -> Markup:
    """Two pictures, their cosine and their names."""
    names = [short_name(str(name)) for name in pair["names"]]
    pictures = [
        tag("img", src=picture, alt=name)
        for picture, name in zip(pair["pictures"], names, strict=True)
    ]
    return tag(
        "div",
        tag("div", pictures, class_="pictures"),
        tag("b", fixed(pair["cosine"], 3)),
        [
            tag("span", name, title=str(whole))
            for name, whole in zip(names, pair["names"], strict=True)
        ],
        class_="pair",
    )


def short_name(name: str) -> str:
    """What tells images apart: the last two parts of a path, the number in a .bin file."""
    _, inside, number = name.rpartition(": image ")
    return f"image {number}" if inside else "/".join(name.split("/")[-2:])
