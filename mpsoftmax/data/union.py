"""Several image sets as one, their classes side by side.

Whether a class of one set is the same identity as a class of another is not known here: classes are never
merged. Which set a class belongs to follows from its index alone (`sizes`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpsoftmax.data.image_set import IGNORE, ImageSet
from mpsoftmax.data.string_table import LazyStrings


@dataclass(frozen=True, eq=False)
class Union:
    """Image sets one after the other; an ``ImageSet``.

    Attributes:
        parts: The sets.
        names: What each is called.
        labels: int64 [n]: class k of set b is class ``k + sum(sizes[:b])`` (computed).
        class_names: Those of the sets; ``set:name`` where sets share a name (computed).
        sizes: Number of classes of each set (computed).
        starts: int64 [sets + 1], index of each set's first image, and their number (computed).

    Raises:
        ValueError: No set, or as many names as sets are not given.
    """

    parts: Sequence[ImageSet]
    names: Sequence[str]
    labels: np.ndarray = field(init=False)
    class_names: Sequence[str] = field(init=False)
    sizes: tuple[int, ...] = field(init=False)
    starts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.names):
            raise ValueError(
                f"Union of {len(self.parts)} sets named {list(self.names)}: expected a name for each of at "
                "least one set"
            )
        sizes = tuple(len(part.class_names) for part in self.parts)
        offsets = np.cumsum([0, *sizes])
        labels = [
            np.where(part.labels == IGNORE, np.int64(IGNORE), part.labels + offset)
            for part, offset in zip(self.parts, offsets[:-1], strict=True)
        ]
        # The one way to fill computed fields of a frozen dataclass.
        object.__setattr__(self, "labels", np.concatenate(labels))
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "starts", np.cumsum([0, *map(len, self.parts)]))
        object.__setattr__(self, "class_names", UnionNames(self.parts, self.names))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> bytes | np.ndarray:
        """Image of sample ``index``, as its set gives it."""
        part, own = self._find(index)
        return self.parts[part].image(own)

    def name(self, index: int) -> str:
        """``set: name of the sample``."""
        part, own = self._find(index)
        return f"{self.names[part]}: {self.parts[part].name(own)}"

    def _find(self, index: int) -> tuple[int, int]:
        """The set a sample belongs to, and its index there."""
        index = range(len(self))[index]
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return part, index - int(self.starts[part])


class UnionNames(LazyStrings):
    """Class names of several sets; those that several share are made ``set:name``.

    Keeps a byte a class, not the names: sets of a hundred million classes make theirs when asked.

    Args:
        parts: The sets.
        names: What each is called; None leaves every class name as its set has it.
    """

    def __init__(self, parts: Sequence[ImageSet], names: Sequence[str] | None) -> None:
        self._lists = [part.class_names for part in parts]
        self._names = list(names or ())
        self._offsets = np.cumsum([0, *map(len, self._lists)])
        self._shared: np.ndarray | None = None
        if names is None:
            return
        digests = [name_digests(names_of_part) for names_of_part in self._lists]
        values, counts = np.unique(
            np.concatenate([np.unique(own) for own in digests]), return_counts=True
        )
        self._shared = np.isin(np.concatenate(digests), values[counts > 1])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def at(self, position: int) -> str:
        """See LazyStrings."""
        part = int(np.searchsorted(self._offsets, position, side="right")) - 1
        name = self._lists[part][position - int(self._offsets[part])]
        shared = self._shared is not None and self._shared[position]
        return f"{self._names[part]}:{name}" if shared else name


def name_digests(names: Iterable[str]) -> np.ndarray:
    """8 bytes of a hash a name, uint64 [n], the same in every process."""
    digests = b"".join(
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for name in names
    )
    return np.frombuffer(digests, np.uint64)
