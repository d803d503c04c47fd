"""An order for sets whose samples are read in groups: the row groups of a Parquet file, the shards of a set.

A random permutation of single samples reads a group for every sample. Here the groups are permuted, then
the samples within each window of several groups: a reader that keeps a window's groups reads each of them
once an epoch. Every sample still comes once an epoch, in an order of its own each epoch; but only samples of
one window can meet in a batch.
"""

from __future__ import annotations

import numpy as np

from mpsoftmax.data.image_set import ImageSet, Subset
from mpsoftmax.data.view import Relabelled

# Sets these uses of Philox apart from the permutations of samples, keyed by (seed, epoch) alone.
_GROUPS, _WITHIN = 2, 3


def group_starts(images: ImageSet) -> np.ndarray | None:
    """Index of the first sample of each group, and the number of samples; None for a set without groups.

    A view keeps the groups of its set where it keeps their order.
    """
    if isinstance(images, Relabelled):
        return group_starts(images.images)
    if not isinstance(images, Subset):
        starts = getattr(images, "group_starts", None)
        return None if starts is None else np.unique(starts)  # a group may be empty
    inner = group_starts(images.images)
    if inner is None or np.any(np.diff(images.indices) < 0):
        return None
    return np.unique(np.searchsorted(images.indices, inner))


class GroupedOrder:
    """Groups in random order, samples in random order within windows of groups; see this module."""

    def __init__(self, starts: np.ndarray, seed: int, window: int) -> None:
        """Sets up the stream.

        Args:
            starts: int64 [groups + 1], ascending from 0: first sample of each group, and their number.
            seed: 0 .. 2^64-1.
            window: groups whose samples are shuffled together; at least the number of groups is
                a permutation of all samples.

        Raises:
            ValueError: no sample, a window below 1, or a seed out of range.
        """
        if window < 1:
            raise ValueError(f"window: {window} is not at least 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed} is not in 0 .. 2^64-1")
        if len(starts) < 2 or starts[0] != 0 or np.any(np.diff(starts) < 1):
            raise ValueError("starts: groups of at least one sample expected, from sample 0")
        self._starts, self._seed, self._window = starts.astype(np.int64), seed, window
        self._num = int(starts[-1])
        self._epoch = -1
        self._groups = self._ends = np.empty(0, np.int64)
        self._last: tuple[int, int] = (-1, -1)
        self._inside = np.empty(0, np.int64)

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Sample indices at stream positions start .. stop-1, int64 [stop - start]."""
        if not 0 <= start <= stop:
            raise ValueError(f"samples: positions {start}..{stop} are not 0 <= start <= stop")
        parts = [np.empty(0, np.int64)]
        while start < stop:
            epoch, place = divmod(start, self._num)
            self._enter(epoch)
            number = int(np.searchsorted(self._ends, place, side="right"))
            begin = int(self._ends[number - 1]) if number else 0
            end = min(int(self._ends[number]), place + stop - start)
            parts.append(self._samples_of(epoch, number)[place - begin : end - begin])
            start += end - place
        return np.concatenate(parts)

    def _enter(self, epoch: int) -> None:
        """The groups' order in an epoch, and where its windows end; of the epoch last used they are kept."""
        if epoch == self._epoch:
            return
        self._groups = self._generator(_GROUPS, epoch, 0).permutation(len(self._starts) - 1)
        ends = np.cumsum(np.diff(self._starts)[self._groups])
        last = np.arange(self._window, len(ends) + self._window, self._window)
        self._ends = ends[np.minimum(last, len(ends)) - 1]
        self._epoch = epoch

    def _samples_of(self, epoch: int, window: int) -> np.ndarray:
        """The samples of one window in their order; of the window last used they are kept."""
        if self._last != (epoch, window):
            groups = self._groups[window * self._window : (window + 1) * self._window]
            bounds = zip(
                self._starts[groups].tolist(), self._starts[groups + 1].tolist(), strict=True
            )
            members = [np.arange(low, high, dtype=np.int64) for low, high in bounds]
            rng = self._generator(_WITHIN, epoch, window)
            self._inside = rng.permutation(np.concatenate(members))
            self._last = (epoch, window)
        return self._inside

    def _generator(self, use: int, epoch: int, window: int) -> np.random.Generator:
        key = np.array([self._seed, epoch], np.uint64)
        counter = np.array([0, window, 0, use], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))
