"""Pieces that several sections are made of: tables, tiles, notes, a section itself."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mpsoftmax.markup import Child, Markup, tag


def section(anchor: str, title: str, *children: Child, lead: str = "") -> Markup:
    """A section with a heading that can be linked to."""
    return tag(
        "section",
        tag("h2", title),
        tag("p", lead, class_="lead") if lead else None,
        children,
        id=anchor,
    )


def missing(what: str, how: str) -> Markup:
    """Says plainly what is not here, and how to get it."""
    return tag("p", tag("b", what), " ", how, class_="missing")


@dataclass(frozen=True)
class Group:
    """A row of a table that names those below it."""

    name: Child


def table(
    head: Sequence[Child],
    rows: Sequence[Sequence[Child] | Group],
    *,
    numbers: Collection[int] = (),
    name: str = "",
    class_: str | None = None,
) -> Markup:
    """A table that scrolls sideways where it is too wide.

    Args:
        head: A title a column; none where all are empty.
        rows: A cell a column, or the name of the group that begins.
        numbers: Columns of numbers, which are aligned right.
        name: Above the table.
        class_: Of the table.
    """

    def cells(kind: str, row: Sequence[Child]) -> list[Markup]:
        return [
            tag(kind, cell, class_="number" if k in numbers else None) for k, cell in enumerate(row)
        ]

    def row_of(row: Sequence[Child] | Group) -> Markup:
        if isinstance(row, Group):
            return tag("tr", tag("th", row.name, colspan=len(head)), class_="group")
        return tag("tr", cells("td", row))

    return tag(
        "div",
        tag(
            "table",
            tag("caption", name) if name else None,
            tag("thead", tag("tr", cells("th", head))) if any(head) else None,
            tag("tbody", [row_of(row) for row in rows]),
            class_=class_,
        ),
        class_="scroll",
    )


def tile(label: str, value: str, below: str = "", unit: str = "") -> Markup:
    """One figure that is seen first."""
    return tag(
        "div",
        tag("span", label, class_="tile-label"),
        tag("span", value, tag("small", f" {unit}") if unit else None, class_="tile-value"),
        tag("span", below or "\u00a0", class_="tile-below"),
        class_="tile",
    )


def grid(charts: Sequence[Markup]) -> Markup:
    """Charts side by side, as many as there is room for."""
    return tag("div", charts, class_="grid")


def beside(*parts: Child) -> Markup:
    """Side by side, where there is room."""
    return tag("div", [tag("div", part) for part in parts if part], class_="beside")


def details(title: str, *children: Child, opened: bool = False) -> Markup:
    """What is there for those who look."""
    return tag("details", tag("summary", title), children, open=opened)


def run_label(name: str, colour: int) -> Markup:
    """A run's name with its colour."""
    return tag("span", tag("i", class_=f"swatch c{colour % 6}"), name, class_="run-label")
