"""Lists of images by path with their labels, in the dialects of the field.

| dialect | a line | of |
|---|---|---|
| ``tab`` | ``path TAB label`` | PLSC, TFace |
| ``space`` | ``path SPACE label``; the label follows the last space | FaceX-Zoo, MSMT17, CelebA |
| ``im2rec`` | ``index TAB label [TAB label ...] TAB path``; the first label counts | MXNet's .lst |
| ``face2rec`` | ``aligned TAB path TAB label [TAB ...]`` | InsightFace's train.lst |
| ``cvlface`` | ``key TAB path TAB label`` | CVLface's train.tsv |
| ``csv`` | ``path, label [, label ...]``, with or without a header | Grocery Store |
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpsoftmax.data.folder import IMAGE_SUFFIXES, FolderImages, TarImages
from mpsoftmax.data.image_set import check_labels
from mpsoftmax.data.list_dialect import DIALECTS, dialect_of
from mpsoftmax.data.named_files import files_of, tidy
from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.string_table import NumberNames, StringTable, numbered_classes

SUFFIXES = (".txt", ".lst", ".tsv", ".csv", ".list")
_WHOLE = re.compile(r"(-?\d{1,15})(?:\.0*)?")
_PATH_COLUMNS = ("path", "file", "image", "filename", "file_name", "image_path")
_LABEL_COLUMNS = ("label", "class", "class_id", "target", "id")


@dataclass(frozen=True)
class ListLine:
    """One image as a list states it: line number from 1, path and label as written."""

    line: int
    path: str
    label: str


def open_path_list(
    path: Path,
    root: Path | None = None,
    *,
    dialect: str = "auto",
    label_column: str | int | None = None,
    check: bool = True,
) -> FolderImages | TarImages:
    """Open the images that a list names.

    Args:
        path: The list, UTF-8 text.
        root: Folder or uncompressed tar that its paths are relative to; None: the list's folder.
        dialect: A name of this module's table, or ``auto``: told from the content.
        label_column: ``csv`` only: name, or number from 1 behind the path, of the label to take.
        check: Refuse labels out of range; ``inspect`` reports them instead.

    Raises:
        ValueError: A malformed line, a list of two possible dialects, a label that is no class, or an
            image that is missing; names list and line.
    """
    rows = read_path_list(path, dialect, label_column)
    labels, names = _classes(rows, path)
    paths = [tidy(row.path) for row in rows]

    def where(number: int) -> str:
        return f"{path}:{rows[number].line}"

    if check:
        check_labels(labels, len(names), lambda k: f"{paths[k]} (line {rows[k].line})", str(path))
    return files_of(path.parent if root is None else root, paths, where, labels, names)


def read_path_list(
    path: Path, dialect: str = "auto", label_column: str | int | None = None
) -> list[ListLine]:
    """The lines of a list; arguments and errors as ``open_path_list``."""
    if dialect not in ("auto", *DIALECTS):
        raise ValueError(f"dialect: {dialect!r}; allowed: auto, {', '.join(DIALECTS)}")
    file = PositionalFile(path)
    try:
        lines = file.read(0, file.size, "list").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: UTF-8 text expected: {error}") from None
    if not any(map(str.strip, lines)):
        raise ValueError(f"{path}: no lines in it")
    kind = dialect_of(lines, str(path)) if dialect == "auto" else dialect
    if label_column is not None and kind != "csv":
        raise ValueError(f"{path}: label_column is for csv, and this list is read as {kind!r}")
    if kind == "csv":
        return list(_csv_rows(lines, path, label_column))
    parse = _PARSERS[kind]
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(ListLine(number, *parse(line)))
            except (ValueError, IndexError):
                raise ValueError(
                    f"{path}:{number}: {DIALECTS[kind]!r} expected (read as {kind!r}), found {line[:100]!r}"
                ) from None
    return rows


def _tab(line: str) -> tuple[str, str]:
    path, label = line.split("\t")
    return path, label


def _space(line: str) -> tuple[str, str]:
    path, label = line.strip().rsplit(maxsplit=1)
    return path, label


def _im2rec(line: str) -> tuple[str, str]:
    index, *labels, path = line.split("\t")
    int(index)
    return path, labels[0]


def _face2rec(line: str) -> tuple[str, str]:
    aligned, path, label, *_ = line.split("\t")
    if aligned.strip() not in ("0", "1"):
        raise ValueError(aligned)
    return path, label


def _cvlface(line: str) -> tuple[str, str]:
    _, path, label = line.split("\t")
    return path, label


_PARSERS: dict[str, Callable[[str], tuple[str, str]]] = {
    "tab": _tab,
    "space": _space,
    "im2rec": _im2rec,
    "face2rec": _face2rec,
    "cvlface": _cvlface,
}


def _csv_rows(
    lines: Sequence[str], path: Path, label_column: str | int | None
) -> Iterator[ListLine]:
    try:
        rows = [
            (number, [field.strip() for field in fields])
            for number, fields in enumerate(csv.reader(lines, strict=True), start=1)
            if any(field.strip() for field in fields)
        ]
    except csv.Error as error:
        raise ValueError(f"{path}: csv expected: {error}") from None
    first = rows[0][1]
    header = not any(field.lower().endswith(IMAGE_SUFFIXES) for field in first)
    if header:
        at, label = _named_columns(first, path, label_column)
    else:
        at, label = 0, _numbered_column(len(first), path, label_column)
    for number, fields in rows[header:]:
        if len(fields) != len(first):
            raise ValueError(f"{path}:{number}: {len(first)} columns expected, found {len(fields)}")
        yield ListLine(number, fields[at], fields[label])


def _named_columns(
    header: Sequence[str], path: Path, label_column: str | int | None
) -> tuple[int, int]:
    names = [name.lower() for name in header]
    at = next((names.index(name) for name in _PATH_COLUMNS if name in names), None)
    if at is None:
        raise ValueError(
            f"{path}:1: a column {' or '.join(_PATH_COLUMNS)} expected, found {', '.join(header)}"
        )
    wanted = _LABEL_COLUMNS if label_column is None else (str(label_column).lower(),)
    label = next((names.index(name) for name in wanted if name in names), None)
    if label is None and label_column is None and len(names) == 2:
        label = 1 - at
    if label is None or label == at:
        raise ValueError(
            f"{path}:1: a column {' or '.join(wanted)} expected, found {', '.join(header)}; say which with "
            "label_column"
        )
    return at, label


def _numbered_column(width: int, path: Path, label_column: str | int | None) -> int:
    column = 1 if label_column is None else label_column
    if isinstance(column, bool) or not isinstance(column, int) or not 1 <= column < width:
        raise ValueError(
            f"{path}: label_column: {label_column!r}; allowed without a header: 1..{width - 1}, the labels "
            "behind the path"
        )
    return column


def _classes(rows: Sequence[ListLine], path: Path) -> tuple[np.ndarray, NumberNames | StringTable]:
    """Labels int64 [n] and class names: numbers, or the sorted texts where no label is a number."""
    if not rows:
        raise ValueError(f"{path}: no images in it")
    matches = [_WHOLE.fullmatch(row.label.strip()) for row in rows]
    if not any(matches):
        texts = [row.label.strip() for row in rows]
        names = sorted(set(texts))
        place = {name: number for number, name in enumerate(names)}
        return np.array([place[text] for text in texts], dtype=np.int64), StringTable(names)
    for row, match in zip(rows, matches, strict=True):
        if match is None:
            raise ValueError(
                f"{path}:{row.line}: a whole number expected as label, found {row.label[:50]!r}"
            )
    labels = np.array([int(match[1]) for match in matches if match], dtype=np.int64)
    return labels, numbered_classes(labels, str(path))
