"""Many strings in little memory: a Python list of 42 million paths takes over 4 GB per worker."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class LazyStrings(Sequence[str]):
    """A sequence of strings made when asked for: a subclass says how many, and which each is."""

    @abstractmethod
    def at(self, position: int) -> str:
        """The string at a position of 0 .. len - 1."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])


class StringTable(LazyStrings):
    """An immutable sequence of strings held as one byte string and int64 end positions.

    Undecodable file names survive (surrogateescape). Shared copy-on-write by forked workers,
    since reading it touches no reference counts of single strings.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        parts = [text.encode("utf-8", "surrogateescape") for text in strings]
        self._ends = np.fromiter(
            itertools.accumulate(map(len, parts)), dtype=np.int64, count=len(parts)
        )
        self._bytes = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, position: int) -> str:
        """See LazyStrings."""
        start = int(self._ends[position - 1]) if position else 0
        return self._bytes[start : int(self._ends[position])].decode("utf-8", "surrogateescape")


MOST_UNUSED = 1 << 24
"""Classes without an image that numbered labels may leave, beyond sixteen for each image."""


def numbered_classes(labels: np.ndarray, source: str) -> "NumberNames":
    """Names of the classes 0 .. largest label of int64 [n].

    Raises:
        ValueError: labels are so far apart that they are no class numbers; a table of the classes would take
            any memory.
    """
    count = max(int(labels.max(initial=-1)) + 1, 0)
    most = MOST_UNUSED + 16 * len(labels)
    if count > most:
        raise ValueError(
            f"{source}: label {count - 1} among {len(labels)} images; allowed: class numbers, below {most} "
            "for so few images. Number the classes from 0, or write labels as text"
        )
    return NumberNames(count)


class NumberNames(LazyStrings):
    """Class names for formats that carry none: zero-padded indices, so that they sort as numbers.

    Args:
        count: Number of names; ``NumberNames(11)[7] == "07"``.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._width = len(str(max(count - 1, 0)))

    def __len__(self) -> int:
        return self._count

    def at(self, position: int) -> str:
        """See LazyStrings."""
        return f"{position:0{self._width}d}"
