"""The plots of docs/evidence, from the rows of results.csv."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from summary import Method, methods

Rows = Sequence[Mapping[str, Any]]
DPI = 110


def write(rows: Rows, folder: Path) -> Iterator[Path]:
    """Draw every plot that has rows."""
    for name, draw in _PLOTS.items():
        figure = draw(rows)
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=DPI, metadata={"Software": ""})
            plt.close(figure)
            yield path


def _dsoftmax(rows: Rows, *, longer: bool) -> Figure | None:
    """Recall@1 against negatives and against head time; `longer`: of the runs of more epochs."""
    found = [method for methods_ in methods(rows, "dsoftmax").values() for method in methods_]
    of_claim = [method for method in found if ("epochs=" in method.name) == longer]
    if not of_claim:
        return None
    figure, panes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for pane, name in zip(panes, ("negatives_per_sample", "head_ms_per_step"), strict=True):
        families: dict[str, list[Method]] = {}
        for method in _best_step_sizes(of_claim):
            families.setdefault(method.name.split(" ")[0], []).append(method)
        for family, members in families.items():
            points = sorted(_point(method, name) for method in members)
            across, up, bars = zip(*points, strict=True)
            pane.errorbar(across, up, bars, marker="o", capsize=2, lw=1, label=family)
        pane.set(xscale="log", xlabel=name.replace("_", " "))
        pane.grid(alpha=0.3)
    panes[0].set_ylabel("Recall@1, characters never seen (%)")
    panes[1].legend(fontsize=8)
    return figure


def _best_step_sizes(of_claim: Sequence[Method]) -> list[Method]:
    """Of each method the step size that is best on the characters kept for choosing."""
    best: dict[str, tuple[float, Method]] = {}
    for method in of_claim:
        name, figure = method.name.rsplit(" ", 1)[0], method.figure("select_recall_at_1")
        if figure is not None and figure.mean > best.get(name, (-1.0, method))[0]:
            best[name] = figure.mean, method
    return [method for _, method in best.values()]


def _point(method: Method, across: str) -> tuple[float, float, float]:
    x, y = method.figure(across), method.figure("recall_at_1")
    assert x is not None
    assert y is not None
    return x.mean, y.mean, y.half_width if y.num >= 3 else 0.0


def _bars(
    claim: str, metric: Callable[[Method], str], label: str
) -> Callable[[Rows], Figure | None]:
    """Horizontal bars of every method, best on top; the confirmed data sets where there are any."""

    def draw(rows: Rows) -> Figure | None:
        confirmed = [row for row in rows if row["claim"] == claim and row["stage"] == "confirm"]
        found = methods(confirmed or rows, claim)
        if not found:
            return None
        num_columns = min(2, len(found))
        num_rows = -(-len(found) // num_columns)
        height = 0.8 + 0.22 * max(len(of_dataset) for of_dataset in found.values())
        figure, grid = plt.subplots(
            num_rows,
            num_columns,
            figsize=(6 * num_columns, height * num_rows),
            squeeze=False,
            layout="constrained",
        )
        for pane in grid.flat[len(found) :]:
            pane.axis("off")
        for pane, (dataset, of_dataset) in zip(grid.flat, found.items(), strict=False):
            _bar_pane(pane, dataset, of_dataset, metric)
        figure.supxlabel(label, fontsize=9)
        return figure

    return draw


def _bar_pane(
    pane: Any, dataset: str, of_dataset: Sequence[Method], metric: Callable[[Method], str]
) -> None:
    known = [(one.figure(metric(one)), one.name) for one in of_dataset]
    drawn = sorted((figure.mean, figure, name) for figure, name in known if figure is not None)
    if not drawn:
        return
    means = [mean for mean, _, _ in drawn]
    bars = [figure.half_width if figure.num >= 3 else 0.0 for _, figure, _ in drawn]
    pane.barh([name for *_, name in drawn], means, xerr=bars, color="#6b8fb5", capsize=2)
    spread = max(means) - min(means)
    pane.set_xlim(min(means) - 0.3 * spread - 0.5, max(means) + 0.2 * spread + 0.5)
    pane.set_title(f"{dataset}: {metric(of_dataset[0])}", fontsize=9)
    pane.tick_params(labelsize=7)
    pane.grid(axis="x", alpha=0.3)


def _lowest_far(method: Method) -> str:
    """The TAR at the lowest FAR that the test supports."""
    names = [name for name in method.rows[0]["metrics"] if name.startswith("tar_")]
    return min(names, key=lambda name: float(name.removeprefix("tar_")))


def _angles(rows: Rows) -> Figure | None:
    """Mean angle between class weight and class centre by class size."""
    found = methods(rows, "ir")
    drawn = [one for one in next(iter(found.values()), []) if one.figure("angle") is not None]
    if not drawn:
        return None
    figure, pane = plt.subplots(figsize=(8, 5), layout="constrained")
    for method in drawn:
        by_size = method.rows[0]["metrics"]["angle_by_size"]
        sizes = sorted(by_size, key=int)
        line = "-" if "learned" in method.name else "--"
        pane.plot([int(s) for s in sizes], [by_size[s] for s in sizes], line, label=method.name)
    pane.set(xlabel="training images of the class", ylabel="angle of weight and centre (degrees)")
    pane.legend(fontsize=7)
    pane.grid(alpha=0.3)
    return figure


_PLOTS: dict[str, Callable[[Rows], Figure | None]] = {
    "dsoftmax": partial(_dsoftmax, longer=False),
    "dsoftmax_longer": partial(_dsoftmax, longer=True),
    "baskets": _bars("baskets", lambda method: "recall_at_1", "Recall@1 (%)"),
    "ir_angles": _angles,
    "ir_tail": _bars("ir", lambda method: "closed_tail", "top-1 on tail classes (%)"),
    "npcface": _bars("npcface", _lowest_far, "TAR (%)"),
    "losses": _bars("losses", lambda method: "recall_at_1", "Recall@1 (%)"),
}
