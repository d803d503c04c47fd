"""Candidates: which rows of this rank's shard take part in a step.

All of them, or a sample that contains every class the batch needs. Drawing costs time and memory in
proportion to the sample, whatever the number of classes.
"""

from dataclasses import dataclass

import numpy as np

Key = tuple[int, ...]


def random_stream(*key: int) -> np.random.Generator:
    """An independent, counter-based stream for every key, the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class All:
    """Every class is a candidate."""

    def draw(self, num_local: int, positives: np.ndarray, key: Key) -> None:
        """None: all rows, without an index."""
        return


@dataclass(frozen=True)
class Uniform:
    """Partial FC: the batch's own classes, filled up with uniform negatives of every shard.

    An et al., 2021 and 2022 (arXiv 2010.05222, 2203.15565). Each rank keeps all classes of the global batch
    that live in its shard and adds uniform draws without replacement up to int(rate * local classes); where
    the batch's classes alone exceed that, they are the sample. No re-weighting.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        """Check the rate."""
        if not 0 <= self.rate <= 1:
            raise ValueError(f"Uniform.rate: {self.rate!r}; allowed: 0 (positives only) to 1 (all)")

    def draw(self, num_local: int, positives: np.ndarray, key: Key) -> np.ndarray:
        """Sorted local rows of this step's candidates.

        Args:
            num_local: Rows in the shard.
            positives: Sorted unique local rows of the batch's classes, int64.
            key: What the draw depends on: (seed, rank, step, ...).

        Returns:
            int64, sorted, without repetition, containing `positives`.
        """
        wanted = int(self.rate * num_local) - positives.size
        if wanted <= 0:
            return positives
        others = sample_without_replacement(num_local - positives.size, wanted, random_stream(*key))
        # The k-th row that is no positive: skip the positives before it.
        others += np.searchsorted(positives - np.arange(positives.size), others, side="right")
        return np.sort(np.concatenate([positives, others]))


Candidates = All | Uniform


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
