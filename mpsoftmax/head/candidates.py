"""Candidates: which classes of this rank's shard, and which samples, take part in a step's negatives.

All of them, or a sample. Drawing costs time and memory in proportion to the sample, whatever the number of
classes. The sample's own class is always there, as its target; it need not be a candidate.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

Key = tuple[int, ...]


def random_stream(*key: int) -> np.random.Generator:
    """An independent, counter-based stream for every key, the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class Candidates:
    """What every way of drawing offers."""

    holds_positives: ClassVar[bool] = True
    """Whether the batch's own classes are always among the candidates."""
    samples_classes: ClassVar[bool] = False
    """Whether `draw` leaves classes out."""

    def draw(self, num_local: int, positives: np.ndarray, key: Key) -> np.ndarray | None:
        """Sorted local classes that are negatives in this step; None: all of them.

        Args:
            num_local: Classes in the shard.
            positives: Sorted unique local classes of the batch, int64.
            key: What the draw depends on: (seed, rank, step, ...).

        Returns:
            int64, sorted, without repetition.
        """
        return None

    def choose(self, num_samples: int, key: Key) -> np.ndarray | None:
        """Sorted samples of the global batch whose negatives are summed; None: all of them.

        Args:
            num_samples: Valid samples of all ranks.
            key: What the draw depends on, the same on all ranks: (seed, step, ...).

        Returns:
            int64, sorted, at least one where there is any sample.
        """
        return None


@dataclass(frozen=True)
class All(Candidates):
    """Every class is a candidate."""


def check_rate(part: object, rate: float) -> None:
    """Raise ValueError unless 0 < rate <= 1."""
    if not 0 < rate <= 1:
        raise ValueError(f"{type(part).__name__}.rate: {rate!r}; allowed: 0 < rate <= 1 (all)")


def check_filled_rate(part: object, rate: float) -> None:
    """Raise ValueError unless 0 <= rate <= 1, of candidates that hold the batch's own classes anyway."""
    if not 0 <= rate <= 1:
        name = type(part).__name__
        raise ValueError(f"{name}.rate: {rate!r}; allowed: 0 (positives only) to 1 (all)")


@dataclass(frozen=True)
class Uniform(Candidates):
    """Partial FC: the batch's own classes, filled up with uniform negatives of every shard.

    An et al., 2021 and 2022 (arXiv 2010.05222, 2203.15565). Each rank keeps all classes of the global batch
    that live in its shard and adds uniform draws without replacement up to int(rate * local classes); where
    the batch's classes alone exceed that, they are the sample. No re-weighting.
    """

    samples_classes: ClassVar[bool] = True
    rate: float = 0.1

    def __post_init__(self) -> None:
        """Check the rate."""
        check_filled_rate(self, self.rate)

    def draw(self, num_local: int, positives: np.ndarray, key: Key) -> np.ndarray:
        """See Candidates.draw: contains `positives`."""
        wanted = int(self.rate * num_local) - positives.size
        if wanted <= 0:
            return positives
        others = sample_without_replacement(num_local - positives.size, wanted, random_stream(*key))
        # The k-th row that is no positive: skip the positives before it.
        others += np.searchsorted(positives - np.arange(positives.size), others, side="right")
        return np.sort(np.concatenate([positives, others]))


@dataclass(frozen=True)
class UniformBlocks(Candidates):
    """The batch's own classes, and random blocks of neighbouring classes of every shard.

    As `Uniform`, but whole blocks are drawn, on a grid whose phase is drawn too: every class is as likely as
    any other, neighbours come together. Rows of a block lie side by side in memory or on the disk, so reading
    and writing them costs half of scattered ones and takes few pages. Class ids should carry no order that
    matters (classes sorted by source or by likeness make blocks of similar negatives).
    """

    samples_classes: ClassVar[bool] = True
    rate: float = 0.1
    size: int = 128

    def __post_init__(self) -> None:
        """Check the fields."""
        check_filled_rate(self, self.rate)
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"UniformBlocks.size: {self.size!r}; allowed: a whole number of classes >= 1"
            )

    def draw(self, num_local: int, positives: np.ndarray, key: Key) -> np.ndarray:
        """See Candidates.draw: contains `positives`; about rate * num_local classes, in whole blocks."""
        wanted = -(-(int(self.rate * num_local) - positives.size) // self.size)
        if wanted <= 0:
            return positives
        stream = random_stream(*key)
        phase = int(stream.integers(self.size))
        num_blocks = -(-(num_local + phase) // self.size)
        chosen = sample_without_replacement(num_blocks, min(wanted, num_blocks), stream)
        drawn = (chosen[:, None] * self.size - phase + np.arange(self.size)).reshape(-1)
        return np.union1d(drawn[(drawn >= 0) & (drawn < num_local)], positives)


BATCH_LABELS = ("drawn", "excluded", "included")


@dataclass(frozen=True)
class DSoftmaxK(Candidates):
    """D-Softmax-K: random negatives, redrawn each step in every shard, whatever the batch's classes.

    He et al., 2020 (arXiv 1908.01281); our reconstruction of the published idea. Each rank draws
    max(1, int(rate * local classes)) classes uniformly without replacement; a sample's own class is never its
    negative. No re-weighting.

    Attributes:
        batch_labels: Classes of the batch's other samples: "drawn" count where they were drawn (true
            negatives like any other), "excluded" never count, "included" always count, beside the drawn
            ones: their rows are fetched for the targets anyway.
    """

    samples_classes: ClassVar[bool] = True
    rate: float = 1 / 64
    batch_labels: str = "drawn"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_rate(self, self.rate)
        if self.batch_labels not in BATCH_LABELS:
            allowed = ", ".join(BATCH_LABELS)
            raise ValueError(f"DSoftmaxK.batch_labels: {self.batch_labels!r}; allowed: {allowed}")

    @property
    def holds_positives(self) -> bool:  # type: ignore[override]
        """See Candidates."""
        return self.batch_labels == "included"

    def draw(self, num_local: int, positives: np.ndarray, key: Key) -> np.ndarray:
        """See Candidates.draw."""
        wanted = min(num_local, max(1, int(self.rate * num_local)))
        drawn = sample_without_replacement(num_local, wanted, random_stream(*key))
        if self.batch_labels == "excluded":
            return np.setdiff1d(drawn, positives, assume_unique=True)
        if self.batch_labels == "included":
            return np.union1d(drawn, positives)
        return drawn


@dataclass(frozen=True)
class DSoftmaxB(Candidates):
    """D-Softmax-B: all classes, but only a random part of the batch meets its negatives.

    He et al., 2020 (arXiv 1908.01281); the draw and its normaliser are our reconstruction. From the n valid
    samples of all ranks max(1, int(rate * n)) are drawn, the same on all ranks; their inter-class part is
    weighted by n over that number, so its expectation is that of the whole batch. Only for objectives that
    are a sum of a function of t and a function of l (D-Softmax).
    """

    rate: float = 1 / 64

    def __post_init__(self) -> None:
        """Check the rate."""
        check_rate(self, self.rate)

    def choose(self, num_samples: int, key: Key) -> np.ndarray:
        """See Candidates.choose."""
        wanted = min(num_samples, max(1, int(self.rate * num_samples)))
        return sample_without_replacement(num_samples, wanted, random_stream(*key))


CANDIDATES: dict[str, type[Candidates]] = {
    "all": All,
    "uniform": Uniform,
    "uniform_blocks": UniformBlocks,
    "dsoftmax_k": DSoftmaxK,
    "dsoftmax_b": DSoftmaxB,
}


def sample_without_replacement(
    population: int, size: int, stream: np.random.Generator
) -> np.ndarray:
    """`size` distinct integers of [0, population), uniform over all such sets, sorted; O(size log size).

    The distinct values among independent draws, given how many there are, are a uniform set of that
    size; dropping uniform elements from it keeps it uniform. Above half, the complement is drawn, which is
    no larger than the result.
    """
    if size > population // 2:
        keep = np.ones(population, dtype=bool)
        keep[sample_without_replacement(population, population - size, stream)] = False
        return np.flatnonzero(keep)
    drawn = np.empty(0, dtype=np.int64)
    while drawn.size < size:
        missing = size - drawn.size
        more = stream.integers(0, population, size=2 * missing + 16)
        drawn = np.unique(np.concatenate([drawn, more]))
    surplus = stream.choice(drawn.size, drawn.size - size, replace=False, shuffle=False)
    return np.delete(drawn, surplus)
