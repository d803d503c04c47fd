"""Identities that occur in several datasets: the table of likely ones, and the use of a reviewed one.

    dataset_a,class_a,dataset_b,class_b,similarity,lead

At the end of a training on several datasets RUN/duplicates.csv lists pairs of classes whose means are near
each other, largest lead over the runners-up first. A person strikes out what is wrong; what is left serves
the next training:

    head: {baskets: {rule: {kind: known, pairs: duplicates.csv}}}
"""

import csv
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpsoftmax.config import Config
from mpsoftmax.data.union import Union

COLUMNS = ("dataset_a", "class_a", "dataset_b", "class_b", "similarity", "lead")


def write_duplicates(
    path: Path, pairs: Iterable[tuple[int, int, float, float]], images: Union
) -> None:
    """Write pairs (class, class, cosine, lead) by name; the file appears complete or not at all."""
    replacement = path.with_suffix(".new")
    with replacement.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one, other, cosine, lead in pairs:
            named = [*name_in_set(images, one), *name_in_set(images, other)]
            writer.writerow([*named, f"{cosine:.4f}", f"{lead:.4f}"])
    os.replace(replacement, path)


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


def read_names(path: str) -> list[tuple[str, str, str, str]]:
    """(dataset a, class a, dataset b, class b) of each line.

    Raises:
        ValueError: the file cannot be read, or lacks a column; names file and line.
    """
    where = f"head.baskets.rule.pairs: {path}"
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


def find_pairs(path: str, images: Union) -> list[list[int]]:
    """The file's pairs as class indices.

    Raises:
        ValueError: as `read_names`, or it names a dataset or class that is not there.
    """
    lines = read_names(path)
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
            f"head.baskets.rule.pairs: {path}: no class {strange[0][1]!r} in a dataset {strange[0][0]!r}; "
            f"allowed: classes of {', '.join(images.names)}"
        )
    return [[found[line[:2]], found[line[2:]]] for line in lines]


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
    pairs = [] if images is None else find_pairs(path, images)
    if images is None:
        read_names(path)
    known = {"kind": "known", "pairs": pairs}
    rule = known if section.rule["kind"] == "known" else {**section.rule, "after": known}
    return replace(config, head=replace(config.head, baskets=replace(section, rule=rule)))
