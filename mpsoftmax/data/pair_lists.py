"""Lists of verification pairs by file name, in the dialects of the field."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass

from mpsoftmax.data.positional_file import PositionalFile

DIALECTS = ("csv", "paths", "lfw")


@dataclass(frozen=True)
class PairLine:
    """One pair as a list states it.

    Attributes:
        line: Line number in the list, from 1.
        same: Whether both files show the same class.
        file1: Path as written.
        file2: Path as written.
        fold: Fold from 0, where the list states it.
    """

    line: int
    same: bool
    file1: str
    file2: str
    fold: int | None = None


def read_pair_list(path: str | os.PathLike[str], dialect: str, suffix: str) -> list[PairLine]:
    """Read a list of pairs; dialects and arguments as in ``pairs.read_pairs``.

    Raises:
        ValueError: Malformed or empty list; names file and line.
    """
    if dialect not in ("auto", *DIALECTS):
        raise ValueError(f"dialect is {dialect!r}: expected 'auto' or one of {DIALECTS}")
    source = str(path)
    file = PositionalFile(path)
    try:
        lines = file.read(0, file.size, "pair list").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: UTF-8 text expected: {error}") from None
    kind = _dialect(lines) if dialect == "auto" else dialect
    if kind == "csv":
        rows = _parse_csv(lines, source)
    elif kind == "lfw":
        rows = _parse_lfw(lines, source, suffix)
    else:
        rows = _parse_paths(lines, source)
    if not rows:
        raise ValueError(f"{source}: no pairs in it (read as {kind!r})")
    return rows


def _dialect(lines: Sequence[str]) -> str:
    first = next((line for line in lines if line.strip()), "")
    if {"same", "file1", "file2"} <= {field.strip() for field in first.split(",")}:
        return "csv"
    fields = first.split()
    if fields and len(fields) <= 2 and all(_is_number(field) for field in fields):
        return "lfw"
    return "paths"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _same(text: str, where: str) -> bool:
    if text.strip() not in ("0", "1"):
        raise ValueError(f"{where}: 0 or 1 expected for 'same', found {text!r}")
    return text.strip() == "1"


def _parse_csv(lines: Sequence[str], source: str) -> list[PairLine]:
    try:
        reader = csv.reader(lines, strict=True)
        header = [field.strip() for field in next(reader, [])]
        missing = [name for name in ("same", "file1", "file2") if name not in header]
        if missing:
            raise ValueError(f"{source}:1: columns same, file1, file2 expected, missing {missing}")
        rows = []
        for fields in reader:
            where = f"{source}:{reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise ValueError(f"{where}: {len(header)} columns expected, found {len(fields)}")
            row = dict(zip(header, fields, strict=True))
            fold = row.get("fold", "")
            if "fold" in row and not _is_number(fold):
                raise ValueError(f"{where}: number expected for 'fold', found {fold!r}")
            rows.append(
                PairLine(
                    reader.line_num,
                    _same(row["same"], where),
                    row["file1"],
                    row["file2"],
                    int(fold) if fold else None,
                )
            )
    except csv.Error as error:
        raise ValueError(f"{source}: csv expected: {error}") from None
    return rows


def _parse_paths(lines: Sequence[str], source: str) -> list[PairLine]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 3:
            raise ValueError(
                f"{source}:{number}: 'path path 0|1' expected, found {len(fields)} fields"
            )
        rows.append(PairLine(number, _same(fields[2], f"{source}:{number}"), fields[0], fields[1]))
    return rows


def _parse_lfw(lines: Sequence[str], source: str, suffix: str) -> list[PairLine]:
    numbered = [(n, line.split()) for n, line in enumerate(lines, start=1) if line.strip()]
    head = numbered[0][1] if numbered else []
    if not 1 <= len(head) <= 2 or not all(_is_number(field) for field in head):
        raise ValueError(f"{source}:1: 'folds TAB pairs_per_fold' expected")
    folds, pairs_per_fold = (1, int(head[0])) if len(head) == 1 else (int(head[0]), int(head[1]))
    if len(numbered) - 1 != 2 * folds * pairs_per_fold or not pairs_per_fold:
        raise ValueError(
            f"{source}: {folds} folds of {pairs_per_fold} same and as many different pairs"
            f" expected, found {len(numbered) - 1} lines of pairs"
        )
    rows = []
    for position, (number, fields) in enumerate(numbered[1:]):
        same = len(fields) == 3
        if same:
            fields = [fields[0], fields[1], fields[0], fields[2]]
        if len(fields) != 4 or not (_is_number(fields[1]) and _is_number(fields[3])):
            raise ValueError(f"{source}:{number}: 'name n1 n2' or 'name1 n1 name2 n2' expected")
        file1, file2 = (
            f"{name}/{name}_{int(image):04d}{suffix}"
            for name, image in zip(fields[::2], fields[1::2], strict=True)
        )
        rows.append(PairLine(number, same, file1, file2, position // (2 * pairs_per_fold)))
    return rows
