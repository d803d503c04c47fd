"""Identities that occur in several datasets: the table of likely ones, and the use of a reviewed one.

    dataset_a,class_a,dataset_b,class_b,similarity,lead

At the end of a training on several datasets RUN/duplicates.csv lists pairs of classes whose means are near
each other, largest lead over the runners-up first. A person strikes out what is wrong; what is left serves
the next training:

    head: {baskets: {rule: {kind: known, pairs: duplicates.csv}}}       # no negatives of each other
    head: {baskets: {merge: duplicates.csv}}                            # one class

A training that linked identities lists those it merged in RUN/merged.csv, of the same form.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpsoftmax.config import Config
from mpsoftmax.data.new_files import replaced
from mpsoftmax.data.union import Union
from mpsoftmax.head.duplicates import Pair
from mpsoftmax.head.head import ModelParallelSoftmax

KNOWN_KEY, MERGE_KEY = "head.baskets.rule.pairs", "head.baskets.merge"
COLUMNS = ("dataset_a", "class_a", "dataset_b", "class_b", "similarity", "lead")


def merge_listed(config: Config, images: Union | None, head: ModelParallelSoftmax) -> None:
    """Merge the classes that head.baskets.merge lists; collective.

    Raises:
        ValueError: as `find_pairs`.
    """
    section = config.head.baskets
    if section is not None and section.merge is not None and images is not None:
        path = section.merge
        head.merge_classes(head.comm.together(lambda: find_pairs(path, MERGE_KEY, images)))


def write_merged(path: Path, pairs: Iterable[tuple[int, int]], images: Union) -> None:
    """Write (class that keeps its row, class merged into it) by name, as head.baskets.merge reads."""
    write_table(
        path, COLUMNS[:4], [(*name_in_set(images, a), *name_in_set(images, b)) for a, b in pairs]
    )


def write_duplicates(path: Path, pairs: Iterable[Pair], images: Union) -> None:
    """Write likely duplicates by name, with the cosine of their means and their lead."""
    rows = [
        (
            *name_in_set(images, pair.class_a),
            *name_in_set(images, pair.class_b),
            f"{pair.cosine:.4f}",
            f"{pair.lead:.4f}",
        )
        for pair in pairs
    ]
    write_table(path, COLUMNS, rows)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV file that appears complete or not at all."""
    with (
        replaced(path) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def name_in_set(images: Union, class_id: int) -> tuple[str, str]:
    """The dataset of a class, and its name there."""
    offsets = np.cumsum([0, *images.sizes])
    part = int(np.searchsorted(offsets, class_id, side="right")) - 1
    return images.names[part], images.parts[part].class_names[class_id - int(offsets[part])]


def known_pairs_file(config: Config) -> str | None:
    """The file that head.baskets.rule names as its known pairs; None where it names none."""
    section = config.head.baskets
    rule = None if section is None else section.rule
    if isinstance(rule, dict) and rule.get("kind") == "hardest":
        rule = rule.get("after")
    pairs = rule.get("pairs") if isinstance(rule, dict) and rule.get("kind") == "known" else None
    return pairs if isinstance(pairs, str) else None


def read_names(path: str, key: str) -> list[tuple[str, str, str, str]]:
    """(dataset a, class a, dataset b, class b) of each line.

    Raises:
        ValueError: the file cannot be read, or lacks a column; names file and line.
    """
    where = f"{key}: {path}"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise ValueError(f"{where}: cannot be read: {error}") from error
    wanted = COLUMNS[:4]
    for number, line in enumerate(lines):
        missing = [name for name in wanted if not line.get(name)]
        if missing:
            raise ValueError(
                f"{where}: line {number + 2} has no {missing[0]}; expected the columns {', '.join(wanted)}"
            )
    return [(line[wanted[0]], line[wanted[1]], line[wanted[2]], line[wanted[3]]) for line in lines]


def find_pairs(path: str, key: str, images: Union) -> list[tuple[int, int]]:
    """The file's pairs as class indices; `key` names the setting in errors.

    Raises:
        ValueError: as `read_names`, or it names a dataset or class that is not there.
    """
    lines = read_names(path, key)
    wanted = {pair for line in lines for pair in (line[:2], line[2:])}
    found: dict[tuple[str, str], int] = {}
    offset = 0
    for dataset, part in zip(images.names, images.parts, strict=True):
        for number, name in enumerate(part.class_names):
            if (dataset, name) in wanted:
                found[dataset, name] = offset + number
        offset += len(part.class_names)
    strange = sorted(wanted - set(found))
    if strange:
        raise ValueError(
            f"{key}: {path}: no class {strange[0][1]!r} in a dataset {strange[0][0]!r}; "
            f"allowed: classes of {', '.join(images.names)}"
        )
    return [(found[line[:2]], found[line[2:]]) for line in lines]


def with_known_pairs(config: Config, images: Union | None) -> Config:
    """The configuration with class indices in place of the file that names known pairs, if one is named.

    Args:
        config: The configuration.
        images: The datasets; None checks the file alone and leaves no pairs.

    Raises:
        ValueError: as `find_pairs`.
    """
    path, section = known_pairs_file(config), config.head.baskets
    if path is None:
        return config
    assert section is not None
    assert isinstance(section.rule, dict)
    pairs = [] if images is None else find_pairs(path, KNOWN_KEY, images)
    if images is None:
        read_names(path, KNOWN_KEY)
    known = {"kind": "known", "pairs": pairs}
    rule = known if section.rule["kind"] == "known" else {**section.rule, "after": known}
    return replace(config, head=replace(config.head, baskets=replace(section, rule=rule)))
