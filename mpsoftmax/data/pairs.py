"""Verification sets: pairs of images and whether they show the same class."""

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpsoftmax.data.image_set import ImageSet, WithoutClasses, encoded
from mpsoftmax.data.named_files import files_of, tidy
from mpsoftmax.data.new_files import new_files
from mpsoftmax.data.pair_lists import PairLine, read_pair_list
from mpsoftmax.data.verification_bin import read_bin_items


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs over a set of images; their order is that of the file (folds are consecutive blocks).

    Attributes:
        images: The distinct images; their labels are all -1.
        pairs: int64 [P, 2], indices into ``images``.
        same: bool [P].
        folds: int64 [P], fold of each pair where the file states it, else None.
    """

    images: ImageSet
    pairs: np.ndarray
    same: np.ndarray
    folds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.same)


@dataclass(frozen=True, eq=False)
class MemoryImages(WithoutClasses):
    """Encoded images held in memory, without classes; an ``ImageSet``.

    Attributes:
        source: The file they come from.
        items: Encoded bytes of each.
        numbers: int64 [n], the number of each in the file.
    """

    source: str
    items: Sequence[bytes]
    numbers: np.ndarray

    def image(self, index: int) -> bytes:
        """Encoded bytes."""
        return self.items[index]

    def name(self, index: int) -> str:
        """``file.bin: image NUMBER``."""
        return f"{self.source}: image {self.numbers[index]}"


def read_bin(path: str | os.PathLike[str]) -> PairSet:
    """Read an InsightFace .bin (lfw.bin and the like) through a restricted unpickler.

    Images stored several times (LFW pairs repeat people) become one, so that each is embedded
    once: equal bytes, equal embedding.

    Raises:
        ValueError: Malformed, or a pickle that wants to load anything but arrays.
    """
    items, same = read_bin_items(path)
    first: dict[bytes, int] = {}
    pairs = np.array(
        [first.setdefault(item, len(first)) for item in items], dtype=np.int64
    ).reshape(-1, 2)
    _, numbers = np.unique(pairs, return_index=True)
    images = MemoryImages(str(path), list(first), numbers.astype(np.int64))
    return PairSet(images, pairs, np.array(same, dtype=bool))


def write_bin(path: str | os.PathLike[str], pair_set: PairSet) -> None:
    """Write an InsightFace .bin (pickle protocol 4, images as ``bytes``, arrays as PNG).

    Raises:
        ValueError: The file exists.
    """
    items = [encoded(pair_set.images.image(int(index))) for index in pair_set.pairs.ravel()]
    with new_files(Path(path)) as (temporary,), open(temporary, "wb") as file:
        pickle.dump((items, [bool(flag) for flag in pair_set.same]), file, protocol=4)


def read_pairs(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    dialect: str = "auto",
    suffix: str = ".jpg",
) -> PairSet:
    """Read a list of pairs over the files of a folder or of an uncompressed tar.

    Args:
        path: The list, UTF-8 text. Dialects: ``csv``, a header with the columns ``same``,
            ``file1``, ``file2`` and perhaps ``fold``; ``paths``, lines ``path path 0|1``
            separated by TAB or, where a line has none, by spaces; ``lfw``, LFW's pairs.txt (a
            line ``folds TAB pairs_per_fold``, or one number for one fold, then ``name n1 n2`` =
            same or ``name1 n1 name2 n2`` = different).
        images: Folder or tar that the paths are relative to.
        dialect: One of the above, or ``auto``: told from the first line.
        suffix: ``lfw`` only: images are ``name/name_0001<suffix>``.

    Raises:
        ValueError: Malformed list, or an image that is missing; names file and line.
    """
    source = str(path)
    rows = read_pair_list(path, dialect, suffix)
    return _pair_set(rows, source, Path(images))


def _pair_set(rows: Sequence[PairLine], source: str, images: Path) -> PairSet:
    first: dict[str, int] = {}
    lines: list[int] = []
    pairs = np.zeros((len(rows), 2), dtype=np.int64)
    for position, row in enumerate(rows):
        for side, path in enumerate((row.file1, row.file2)):
            path = tidy(path)
            if path not in first:
                first[path] = len(first)
                lines.append(row.line)
            pairs[position, side] = first[path]
    found = files_of(images, list(first), lambda i: f"{source}:{lines[i]}")
    folds = None
    if all(row.fold is not None for row in rows):
        folds = np.array([row.fold for row in rows], dtype=np.int64)
    return PairSet(found, pairs, np.array([row.same for row in rows], dtype=bool), folds)
