"""Which dialect of ``path_lists`` a list of images is written in, told from its lines."""

import re
from collections.abc import Sequence

from mpsoftmax.data.folder import IMAGE_SUFFIXES

DIALECTS = {
    "tab": "path TAB label",
    "space": "path SPACE label",
    "im2rec": "index TAB label [TAB label ...] TAB path",
    "face2rec": "aligned TAB path TAB label [TAB ...]",
    "cvlface": "key TAB path TAB label",
    "csv": "path, label [, label ...]",
}
SAMPLE = 1000
_PAIRS = {"same", "file1", "file2"}
"""Columns of a list of pairs."""
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?")


def dialect_of(lines: Sequence[str], source: str) -> str:
    """The dialect of a list, from its first thousand lines.

    Raises:
        ValueError: None fits, or two do; says what would settle it.
    """
    sample = [line for line in lines if line.strip()][:SAMPLE]
    if sample and {field.strip() for field in sample[0].split(",")} >= _PAIRS:
        raise ValueError(
            f"{source}: {sample[0].strip()[:100]!r} heads a list of pairs, which data.eval takes, not of "
            "images"
        )
    tabs = [line.split("\t") for line in sample]
    if all(len(fields) > 1 for fields in tabs):
        return _of_tabs(tabs, source)
    if any(len(fields) > 1 for fields in tabs):
        raise ValueError(f"{source}: some lines have TABs and others have none; set dialect")
    if all("," in line for line in sample) and _is_csv(sample):
        return "csv"
    return _of_spaces(sample, source)


def _is_csv(sample: Sequence[str]) -> bool:
    """Whether what stands before the first comma is a path; in the first line it may be a header."""
    firsts = [line.split(",")[0] for line in sample]
    return all(map(is_path, firsts[1:] or firsts)) or "path" in sample[0].lower().split(",")


def _of_spaces(sample: Sequence[str], source: str) -> str:
    fields = [line.split() for line in sample]
    if all(len(row) == 3 and is_path(row[0]) and is_path(row[1]) for row in fields):
        raise ValueError(
            f"{source}: 'path path 0|1' is a list of pairs, which data.eval takes, not a list of images"
        )
    if all(len(row) >= 2 and is_number(row[-1]) for row in fields):
        return "space"
    bad = [len(row) < 2 or not is_number(row[-1]) for row in fields]
    example = sample[bad.index(True)]
    raise ValueError(
        f"{source}: no dialect fits {example[:100]!r}; allowed: {'; '.join(DIALECTS.values())}"
    )


def _of_tabs(rows: Sequence[Sequence[str]], source: str) -> str:
    """By which columns hold numbers: a column is one where every line of the sample agrees."""
    if all(len(row) == 2 for row in rows):
        return _of_two(rows, source)
    if all(len(row) == 3 and is_path(row[0]) and is_path(row[1]) for row in rows):
        raise ValueError(
            f"{source}: 'path TAB path TAB 0|1' is a list of pairs, which data.eval takes, not of images"
        )
    second = [is_number(row[1]) for row in rows]
    if all(second):
        if all(not is_number(row[-1]) for row in rows):
            return "im2rec"
        if all(len(row) == 4 and not is_number(row[0]) for row in rows):
            raise ValueError(
                f"{source}: 'name TAB shard TAB offset TAB label' is TFace's index of .tfrecord files, which "
                "are not read; allowed: image files, .rec, .tar, .parquet, .arrow"
            )
        raise _undecided(source, ["im2rec", "cvlface"], "every column holds numbers only")
    if any(second):
        raise ValueError(
            f"{source}: column 2 is a number in some lines and none in others; set dialect"
        )
    return _face2rec_or_cvlface(rows, source)


def _of_two(rows: Sequence[Sequence[str]], source: str) -> str:
    if all(is_number(row[1]) for row in rows):
        return "tab"
    if all(is_number(row[0]) for row in rows):
        raise ValueError(
            f"{source}: 'label TAB path' found; allowed: 'path TAB label' or {DIALECTS['im2rec']!r}"
        )
    raise ValueError(f"{source}: 'path TAB label' expected, found {' TAB '.join(rows[0])[:100]!r}")


def _face2rec_or_cvlface(rows: Sequence[Sequence[str]], source: str) -> str:
    firsts = [row[0].strip() for row in rows]
    flags = set(firsts) <= {"0", "1"}
    if any(len(row) != 3 for row in rows):
        if flags:
            return "face2rec"
        raise ValueError(f"{source}: no dialect fits {' TAB '.join(rows[0])[:100]!r}")
    if not flags:
        return "cvlface"
    if len(set(firsts)) < len(firsts):  # a key names one image
        return "face2rec"
    raise _undecided(source, ["face2rec", "cvlface"], "column 1 may be a flag or a key")


def _undecided(source: str, dialects: Sequence[str], why: str) -> ValueError:
    choices = " or ".join(f"dialect={name} ({DIALECTS[name]})" for name in dialects)
    return ValueError(f"{source}: more than one dialect fits: {why}; say {choices}")


def is_number(text: str) -> bool:
    """Whether a field is a plain number."""
    return bool(_NUMBER.fullmatch(text.strip()))


def is_path(text: str) -> bool:
    """Whether a field looks like an image's path."""
    return text.strip().lower().endswith(IMAGE_SUFFIXES)
