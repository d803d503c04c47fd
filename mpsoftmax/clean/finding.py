"""One line of the table that a person reviews, and the table as CSV."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from mpsoftmax.data.new_files import new_files

KINDS = ("label", "two_clusters", "near_duplicate", "identity")
ACTIONS = ("drop", "relabel", "merge", "keep")


@dataclass(frozen=True)
class Finding:
    """What may be wrong, and what to do about it.

    Attributes:
        kind: label: an image that does not fit its class; two_clusters: a class in two parts;
            near_duplicate: an image that is nearly another one; identity: a class that is another one.
        action: drop: leave the image out; relabel: give it `to_class`; merge: make `class_id` and `to_class`
            one; keep: nothing.
        score: Larger is more suspicious; comparable within a kind.
        class_id: Number of the class in the data set; of an image, its class.
        class_name: Its name.
        image: Number of the image; -1 where the finding is about a class.
        image_name: Its name.
        to_class: The other class; -1 where there is none.
        to_class_name: Its name.
        other_image: The other image; -1 where there is none.
        evidence: Numbers behind the score, in words.
    """

    kind: str
    action: str
    score: float
    class_id: int
    class_name: str
    image: int = -1
    image_name: str = ""
    to_class: int = -1
    to_class_name: str = ""
    other_image: int = -1
    evidence: str = ""


COLUMNS = tuple(field.name for field in fields(Finding))
WHOLE = ("class_id", "image", "to_class", "other_image")


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """Write the table.

    Raises:
        ValueError: it exists.
    """
    with (
        new_files(path) as (temporary,),
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in findings:
            kind, action, score, *rest = astuple(one)
            writer.writerow((kind, action, f"{score:.6f}", *rest))


def read_findings(path: Path) -> list[Finding]:
    """Read a table, also one that a person has changed: lines may be gone, actions be others.

    Raises:
        ValueError: it cannot be read, lacks a column, or holds what is no kind, action or number; names the
            line.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{path}: no column {missing[0]}; expected {', '.join(COLUMNS)}")
            return [parse(path, reader.line_num, line) for line in reader]
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def parse(path: Path, number: int, line: dict[str, str]) -> Finding:
    """One line of a table."""
    where = f"{path}: line {number}"
    for name, allowed in (("kind", KINDS), ("action", ACTIONS)):
        if line[name] not in allowed:
            raise ValueError(f"{where}: {name} {line[name]!r}; allowed: {', '.join(allowed)}")
    try:
        numbers = {name: int(line[name]) for name in WHOLE}
        score = float(line["score"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {error}; allowed: whole numbers in {', '.join(WHOLE)}"
        ) from error
    words = {name: line[name] or "" for name in COLUMNS if name not in (*WHOLE, "score")}
    return Finding(**words, **numbers, score=score)  # type: ignore[arg-type]


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """By kind, the most suspicious first."""
    return sorted(findings, key=lambda one: (KINDS.index(one.kind), -one.score, one.image))
