"""The order of samples drawn from several sets in stated proportions.

Set b with weight w_b has its draw number j (from 0) at time (j + 1/2) / w_b; the stream is all draws of all
sets by time (Webster's divisor method, as networks' stride schedulers do). It needs no state and no table:
how many draws come before a time is a formula, so any position is entered at once.

Of the first n draws, set b has its share n w_b / sum(w) to within (1 + (sets - 2) share) / 2: half a draw
for two sets, less than one for three. After sum(w) / d draws, d the weights' greatest common divisor, it is
exact: with numbers of images as weights, one epoch of the mixture is one epoch of every set.
"""

from collections.abc import Sequence

import numpy as np

from mpsoftmax.data.order import Order


class MixtureOrder:
    """An endless stream over several sets, each of them an endless stream of its own."""

    def __init__(
        self,
        orders: Sequence[Order],
        starts: Sequence[int],
        weights: Sequence[float],
        group: int = 1,
    ) -> None:
        """Sets up the stream.

        Args:
            orders: The stream of each set, of indices within the set.
            starts: Index of each set's first sample in the union of the sets.
            weights: Relative share of the draws of each set; positive.
            group: Samples a draw: consecutive samples of one set (K of a pk order).

        Raises:
            ValueError: lengths differ or are 0, a weight is not positive and finite, or group is below 1.
        """
        if not orders or not len(orders) == len(starts) == len(weights):
            raise ValueError(
                f"mixture of {len(orders)} orders, {len(starts)} starts, {len(weights)} weights: expected "
                "as many of each, at least one"
            )
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights: {list(weights)}: expected positive numbers")
        if group < 1:
            raise ValueError(f"group: {group} is not at least 1")
        self._orders = list(orders)
        self._starts = [int(start) for start in starts]
        self._weights = [float(weight) for weight in weights]
        self._group = group

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Sample indices at stream positions start .. stop-1, int64 [stop - start]."""
        if not 0 <= start <= stop:
            raise ValueError(f"samples: positions {start}..{stop} are not 0 <= start <= stop")
        if start == stop:
            return np.empty(0, np.int64)
        k = self._group
        first, last = start // k, -(-stop // k)
        sets, numbers = self.draws(first, last)
        out = np.empty((last - first, k), np.int64)
        for b, order in enumerate(self._orders):
            mine = sets == b
            if mine.any():
                low, high = int(numbers[mine][0]), int(numbers[mine][-1]) + 1
                out[mine] = order.samples(low * k, high * k).reshape(-1, k) + self._starts[b]
        return out.reshape(-1)[start - first * k : stop - first * k]

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Which set each draw start .. stop-1 is from, and its number there; int64 [stop - start] each."""
        weights, total = self._weights, sum(self._weights)
        # By time T, T * total draws have come, to within half a draw a set.
        before, after = (start - len(weights)) / total, (stop + len(weights)) / total
        low = [count_before(before, weight) for weight in weights]
        high = [count_before(after, weight) for weight in weights]
        numbers = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
        sets = np.repeat(np.arange(len(weights)), np.subtract(high, low))
        times = (numbers + 0.5) / np.take(weights, sets)
        # Stable: at equal times the earlier set comes first.
        chosen = np.argsort(times, kind="stable")[start - sum(low) : stop - sum(low)]
        return sets[chosen], numbers[chosen]


def count_before(time: float, weight: float) -> int:
    """Number of draws of a set before a time, counted with the very rounding of their times."""
    count = max(0, int(time * weight - 1.5))
    while (count + 0.5) / weight < time:
        count += 1
    return count
