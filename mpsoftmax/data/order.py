"""The order in which samples are drawn: endless streams that any position can enter.

A stream is a pure function of (seed, position), the position being the number of samples drawn
before. It knows no rank, no batch size and no worker, so a run continues exactly where it stopped,
at any world size: a batch is a cut of the stream, a rank takes its `share` of the cut.

Random permutations are keyed by counters (Philox; Salmon et al. 2011), never drawn in sequence.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Order(Protocol):
    """An endless stream of sample indices."""

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Sample indices at stream positions start .. stop-1, int64 [stop - start]."""
        ...


def share(num: int, rank: int, world: int) -> tuple[int, int]:
    """The part [lo, hi) of a cut of `num` samples that a rank takes; sizes differ by at most one.

    Args:
        num: samples in the cut.
        rank: 0 .. world-1.
        world: number of ranks.

    Raises:
        ValueError: `num` is negative or `rank` is not below `world`.
    """
    if num < 0 or not 0 <= rank < world:
        raise ValueError(
            f"share: num {num}, rank {rank}, world {world}: need num >= 0, rank < world"
        )
    return num * rank // world, num * (rank + 1) // world


class ImagesOrder:
    """Uniform over images: perm(seed, 0) ++ perm(seed, 1) ++ ..., each of all samples.

    Samples labelled -1 are drawn too: the epoch stays the data set, and the head ignores them.
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        """Sets up the stream.

        Args:
            labels: int64 [n], n > 0; only their number matters.
            seed: 0 .. 2^64-1.

        Raises:
            ValueError: there are no samples, or the seed is out of range.
        """
        if not len(labels):
            raise ValueError("labels: there are no samples to draw from")
        self._permutations = _Permutations(len(labels), seed)

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Sample indices at stream positions start .. stop-1, int64 [stop - start]."""
        return self._permutations.stream(start, stop)


class PKOrder:
    """Groups of K images of one class, the classes uniform: for metric losses and re-ID.

    The groups go round the classes, each round in a new random order. A class is walked by random
    permutations of its images, so that all are used about equally: K from each permutation for a
    group as long as K are left (no repetition within a group); a class with fewer than K images
    gives all of them, repeated up to K. Cut batches at multiples of K.
    """

    def __init__(self, labels: np.ndarray, seed: int, images_per_class: int) -> None:
        """Sets up the stream.

        Args:
            labels: int64 [n], class of each sample; samples labelled -1 are never drawn.
            seed: 0 .. 2^64-1.
            images_per_class: K, at least 1.

        Raises:
            ValueError: no labelled sample, K below 1, or a seed out of range.
        """
        if images_per_class < 1:
            raise ValueError(f"images_per_class: {images_per_class} is not at least 1")
        rows = np.argsort(labels, kind="stable")
        self._members = rows[np.searchsorted(labels[rows], 0) :].astype(np.int64)
        if not len(self._members):
            raise ValueError("labels: there are no labelled samples to draw from")
        _, self._first, self._sizes = np.unique(
            labels[self._members], return_index=True, return_counts=True
        )
        self._images_per_class = images_per_class
        self._seed = seed
        self._rounds = _Permutations(len(self._first), seed)

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Sample indices at stream positions start .. stop-1, int64 [stop - start]."""
        k = self._images_per_class
        group, place = np.divmod(np.arange(start, stop, dtype=np.int64), k)
        if not len(group):
            return group
        num_classes = len(self._first)
        first_group = int(group[0])
        classes = self._rounds.stream(first_group, int(group[-1]) + 1)[group - first_group]
        sizes = self._sizes[classes]
        # The visit-th group of a class is cut from permutation number `cycle` of its images.
        visit = group // num_classes
        groups_per_cycle = np.maximum(sizes // k, 1)
        cycle, part = np.divmod(visit, groups_per_cycle)
        position = (part * k + place) % sizes
        return self._members[
            self._first[classes] + _permuted(position, sizes, self._seed, classes, cycle)
        ]


class ClassesOrder:
    """Uniform over classes: each round visits every class once, in a new random order.

    The images of a class are walked by random permutations, so that all are used equally.
    Classes without images and samples labelled -1 are never drawn.
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        """Sets up the stream.

        Args:
            labels: int64 [n], class of each sample.
            seed: 0 .. 2^64-1.

        Raises:
            ValueError: no labelled sample, or a seed out of range.
        """
        self._groups = PKOrder(labels, seed, images_per_class=1)

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Sample indices at stream positions start .. stop-1, int64 [stop - start]."""
        return self._groups.samples(start, stop)


class _Permutations:
    """perm(seed, 0) ++ perm(seed, 1) ++ ... of 0 .. num-1; keeps the permutation last used."""

    def __init__(self, num: int, seed: int) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed} is not in 0 .. 2^64-1")
        self._num = num
        self._seed = seed
        self._epoch = -1
        self._current = np.empty(0, np.int64)

    def stream(self, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop:
            raise ValueError(f"samples: positions {start}..{stop} are not 0 <= start <= stop")
        parts = [np.empty(0, np.int64)]
        while start < stop:
            epoch, offset = divmod(start, self._num)
            end = min(self._num, offset + stop - start)
            parts.append(self._permutation(epoch)[offset:end])
            start += end - offset
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            key = np.array([self._seed, epoch], np.uint64)
            self._current = np.random.Generator(np.random.Philox(key=key)).permutation(self._num)
            self._epoch = epoch
        return self._current


_NUM_FEISTEL_ROUNDS = 6


def _permuted(
    position: np.ndarray, size: np.ndarray, seed: int, class_id: np.ndarray, cycle: np.ndarray
) -> np.ndarray:
    """Where a random permutation of 0 .. size-1, keyed by (seed, class, cycle), sends `position`.

    A Feistel network on the next power of four, walked along its cycles until the value falls into
    the range (Black and Rogaway 2002): each element on its own, so that a permutation of
    a class need not be made to read one element of it.

    Args:
        position: int64 [n], in 0 .. size-1.
        size: int64 [n], images in the class.
        seed: the stream's seed.
        class_id: int64 [n].
        cycle: int64 [n], number of the permutation.

    Returns:
        int64 [n], in 0 .. size-1.
    """
    bits = np.uint64(1)  # half the width of each element's network: 4 ** bits >= size
    half_bits = np.full(len(size), bits)
    while (
        too_small := (np.uint64(1) << (half_bits * np.uint64(2))) < size.astype(np.uint64)
    ).any():
        half_bits[too_small] += bits
    seeded = _mix(np.array([seed], np.uint64))
    key = _mix(seeded ^ class_id.astype(np.uint64))
    key = _mix(key ^ cycle.astype(np.uint64))
    result = position.astype(np.uint64)
    walking = np.arange(len(position))
    while len(walking):
        result[walking] = _feistel(result[walking], half_bits[walking], key[walking])
        walking = walking[result[walking] >= size[walking].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(value: np.ndarray, half_bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    for number in range(_NUM_FEISTEL_ROUNDS):
        noise = _mix(key ^ _mix(right + (np.uint64(number) << np.uint64(32))))
        left, right = right, left ^ (noise & mask)
    return left << half_bits | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Splitmix64's output function (Steele, Lea, Flood 2014) of uint64 [n]; modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
