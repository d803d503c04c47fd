"""One picture a command."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Series = Mapping[str, Sequence[float]]


def bars(path: Path, title: str, unit: str, labels: Sequence[str], parts: Series) -> None:
    """Groups of horizontal bars: one group a label, one bar a part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.28 * len(labels) * max(1, len(parts))))
    axes = figure.subplots()
    height = 0.8 / max(1, len(parts))
    for number, (name, values) in enumerate(parts.items()):
        places = [place + number * height for place in range(len(labels))]
        axes.barh(places, values, height, label=name)
    middle = 0.4 - height / 2
    axes.set_yticks([place + middle for place in range(len(labels))], labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.legend(fontsize=7)
    save(figure, path)


def save(figure, path: Path) -> None:  # noqa: ANN001  (matplotlib is imported late)
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def curves(path: Path, title: str, unit: str, panels: Mapping[str, Mapping[str, list]]) -> None:
    """Panels side by side: in each, by name, points (x, y)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * max(1, len(panels)), 3.4))
    all_axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axes, (factor, lines) in zip(all_axes, panels.items(), strict=False):
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axes.set_xlabel(factor)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    figure.suptitle(title)
    save(figure, path)
