"""Tables and plots of results.csv.

    python benchmarks/quality/report.py [--out docs/evidence]

Writes one page a claim (`tables_CLAIM.md`) and its plots. Nothing is typed by hand there: text belongs into
docs/evidence/README.md and the pages of the methods.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import claims
import plots
import results
from summary import Method, difference, methods

ROOT = Path(__file__).resolve().parents[2]
OPEN = ("recall_at_1", "tar_1e-03", "tar_1e-04", "select_recall_at_1")
COLUMNS: dict[str, tuple[str, ...]] = {
    "dsoftmax": (
        "recall_at_1",
        "minus dsoftmax all",
        "minus cosface all",
        "minus partial_fc 1/64",
        *OPEN[1:],
        "closed",
        "candidate_rows",
        "negatives_per_sample",
        "head_ms_per_step",
        "train_s",
    ),
    "baskets": (
        "recall_at_1",
        "minus all_distinct",
        "minus own",
        "minus top_one tau=0.3",
        "gap_closed",
        "tar_1e-03",
        "select_recall_at_1",
        "refused_per_image",
        "refusal_precision",
        "refusal_recall",
        "merges",
        "merge_precision",
        "merge_recall",
    ),
    "ir": (
        "recall_at_1",
        "select_recall_at_1",
        "closed_tail",
        "closed_middle",
        "closed_head",
        "held_out_recall_tail",
        "held_out_recall_head",
        "angle_tail",
        "angle_head",
        "head_ms_per_step",
    ),
    "npcface": (
        "recall_at_1",
        "minus arcface m=0.3",
        "tar_1e-03",
        "tar_1e-04",
        "tar_1e-05",
        "tar_1e-06",
        "select_tar_1e-03",
    ),
    "losses": ("recall_at_1", "minus normface", *OPEN[1:], "tar_1e-05", "head_ms_per_step"),
}
MINUS = "minus "
DIGITS = {"refusal_precision": 3, "refusal_recall": 3, "merge_precision": 3, "merge_recall": 3}
TITLES = {
    "recall_at_1": "Recall@1",
    "tar_1e-03": "TAR at FAR 1e-3",
    "tar_1e-04": "at 1e-4",
    "tar_1e-05": "at 1e-5",
    "tar_1e-06": "at 1e-6",
    "select_recall_at_1": "Recall@1, select",
    "select_tar_1e-03": "TAR at 1e-3, select",
    "gap_closed": "gap closed",
}


def title(column: str) -> str:
    """As it stands above a column."""
    plain = column if column.startswith(MINUS) else column.replace("_", " ")
    return TITLES.get(column, plain)


def gap_closed(method: Method, of_dataset: Sequence[Method]) -> str:
    """Share of the way from "all distinct" to the oracle, in Recall@1."""
    known = {one.name: one.figure("recall_at_1") for one in of_dataset}
    floor, ceiling = known.get("all_distinct"), known.get("oracle")
    own = known[method.name]
    if floor is None or ceiling is None or own is None or ceiling.mean <= floor.mean:
        return ""
    return f"{100 * (own.mean - floor.mean) / (ceiling.mean - floor.mean):.0f} %"


def minus(method: Method, column: str, of_dataset: Sequence[Method]) -> str:
    """Recall@1 less that of the method which the column names, paired by seed and trained as long."""
    name = column.removeprefix(MINUS)
    if "epochs=" in method.name:  # against the other's longer training
        family = " ".join(word for word in name.split() if "=" not in word)
        name = f"{family} epochs={method.name.partition('epochs=')[2]}"
    others = [one for one in of_dataset if one.name == name]
    if not others or others[0] is method:
        return ""
    found = difference(method, others[0], "recall_at_1")
    return "" if found is None else f"{found.mean:+.1f} ± {found.half_width:.1f}"


def cell(method: Method, column: str, of_dataset: Sequence[Method]) -> str:
    """One entry; empty where no run has the figure."""
    if column == "gap_closed":
        return gap_closed(method, of_dataset)
    if column.startswith(MINUS):
        return minus(method, column, of_dataset)
    found = method.figure(column)
    if found is None:
        return ""
    return found.text(0 if found.mean >= 1000 else DIGITS.get(column, 1))


def table(of_dataset: Sequence[Method], columns: Sequence[str]) -> str:
    """A Markdown table of a data set's methods, columns that nobody fills left out."""
    cells = {
        column: [cell(method, column, of_dataset) for method in of_dataset] for column in columns
    }
    kept = [column for column in columns if any(cells[column])]
    lines = [
        "| method | " + " | ".join(title(c) for c in kept) + " | runs |",
        "|---" * (len(kept) + 2) + "|",
    ]
    for place, method in enumerate(of_dataset):
        entries = " | ".join(cells[column][place] for column in kept)
        lines.append(f"| {method.name} | {entries} | {len(method.rows)} |")
    return "\n".join(lines)


def provenance(of_dataset: Sequence[Method]) -> str:
    """Commits and dates of a table's runs."""
    rows = [row for method in of_dataset for row in method.rows]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    dates = sorted({row["date"] for row in rows})
    minutes = sum(row["total_s"] for row in rows) / 60
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return f"{len(rows)} runs, {minutes:.0f} core-minutes, commit {commits}, {when}."


def page(claim: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables of a claim."""
    purpose = (claims.CLAIMS[claim].__doc__ or "").splitlines()[0]
    parts = [
        f"# {claim}: tables",
        f"{purpose} Made by `python benchmarks/quality/report.py` from"
        " benchmarks/quality/results.csv; ± is the 95 % interval over seeds (three runs or more);"
        ' "minus X" is Recall@1 less that of X, seed by seed.',
    ]
    for dataset, of_dataset in methods(rows, claim).items():
        parts += [f"## {dataset}", table(of_dataset, COLUMNS[claim]), provenance(of_dataset)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write all pages and plots that have rows."""
    parser = argparse.ArgumentParser(description="Tables and plots of the quality benchmarks")
    parser.add_argument("--csv", type=Path, default=results.PATH)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "evidence")
    arguments = parser.parse_args()
    rows = results.read(arguments.csv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for claim in claims.CLAIMS:
        if any(row["claim"] == claim for row in rows):
            path = arguments.out / f"tables_{claim}.md"
            path.write_text(page(claim, rows))
            print(path)
    for path in plots.write(rows, arguments.out):
        print(path)


if __name__ == "__main__":
    main()
