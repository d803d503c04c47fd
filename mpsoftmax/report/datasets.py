"""Several datasets in one table: what was linked and merged, and what may be one identity still."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mpsoftmax.markup import Child, Markup, tag
from mpsoftmax.report.blocks import details, missing, run_label, section, table
from mpsoftmax.report.run import Run, Table
from mpsoftmax.report.words import count, fixed

SHOWN = 20
KINDS = {"link": "linked", "split": "split again", "conflict": "not linked: a conflict"}


def datasets(runs: Sequence[Run]) -> Markup | None:
    """One part a run that trains on several datasets; nothing where none does."""
    several = [(k, run) for k, run in enumerate(runs) if is_several(run)]
    if not several:
        return None
    parts = []
    for k, run in several:
        label = tag("h3", run_label(run.name, k)) if len(runs) > 1 else None
        parts.append(tag("div", label, sizes(run), linked(run), tables(run), class_=f"run-{k}"))
    lead = "Mined shares and merges over the steps are among the training curves."
    return section("datasets", "Several datasets", parts, lead=lead)


def is_several(run: Run) -> bool:
    """Whether a run has several datasets, or left traces of such."""
    return isinstance(run.setting("data.train"), list) or bool(run.links) or bool(run.tables)


def sizes(run: Run) -> Markup | None:
    """Images and classes of each dataset."""
    starts = [line for line in run.sessions if line.get("kind") == "start"]
    data = (starts[-1].get("facts") or {}).get("data") or {} if starts else {}
    found = data.get("datasets")
    last = (run.of_kind("train") or [{}])[-1]
    if not found:
        return None
    rows: list[list[Child]] = []
    for number, one in enumerate(found):
        share = last.get(f"rejected_share_{number}")
        rows.append(
            [
                str(one["name"]),
                f"{one['num_images']:,}",
                f"{one['num_classes']:,}",
                fixed(share),
            ]
        )
    return table(["Dataset", "Images", "Classes", "Mined share, last"], rows, numbers=(1, 2, 3))


def linked(run: Run) -> Markup:
    """Events of the linker."""
    if not run.links:
        how = "head.linking merges classes of different datasets while training goes on."
        return missing("Nothing was linked.", how)
    counts = Counter(str(event.get("kind")) for event in run.links)
    words = ", ".join(f"{counts[kind]:,} {text}" for kind, text in KINDS.items() if counts[kind])
    rows = [
        [
            f"{event.get('step', 0):,}",
            KINDS.get(str(event.get("kind")), str(event.get("kind"))),
            str(event.get("a", event.get("class_a"))),
            str(event.get("b", event.get("class_b"))),
            fixed(as_number(event.get("cosine")), 3),
            fixed(as_number(event.get("lead")), 3),
        ]
        for event in run.links[-SHOWN:][::-1]
    ]
    head = ["Step", "What", "Class", "Other class", "Cosine", "Lead"]
    return tag(
        "div",
        tag("p", f"links.jsonl: {words}."),
        details(f"The last {count(len(rows), 'event')}", table(head, rows, numbers=(4, 5))),
    )


def tables(run: Run) -> list[Markup]:
    """merged.csv and duplicates.csv, or why they are not there."""
    found = []
    for name, title in (("merged", "Merged classes"), ("duplicates", "Likely duplicates")):
        one = run.tables.get(name)
        if one is not None:
            found.append(details(f"{title}: {one.num_rows:,} ({name}.csv)", first_rows(one)))
    if "duplicates" not in run.tables:
        how = (
            "head.baskets.duplicates says from which cosine on pairs are listed when training ends."
        )
        found.append(missing("No duplicates.csv.", how))
    return found


def first_rows(one: Table) -> Markup:
    """The first rows of a table."""
    return table(one.columns, one.rows[:SHOWN], numbers=(4, 5))


def as_number(value: Any) -> float | None:
    """A number, or None."""
    return float(value) if isinstance(value, int | float) else None
