"""Is one model better than another? Paired: both are judged on the same pairs or queries."""

import math
from dataclasses import dataclass

import numpy as np

from mpsoftmax.evaluate.bootstrap import bootstrap_weights
from mpsoftmax.evaluate.outcomes import Outcomes
from mpsoftmax.evaluate.result import Interval

_CHUNK_ELEMENTS = 500_000


@dataclass(frozen=True)
class Difference:
    """One figure of two models.

    Attributes:
        first: of the first model.
        second: of the second.
        difference: first - second.
        interval: 95 % of the difference, by a paired bootstrap; None without it.
        p_permutation: two-sided; None where the figure is no mean over items.
        mcnemar: (items only the first got right, only the second, exact two-sided p); None where
            items are not right or wrong.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None
    p_permutation: float | None
    mcnemar: tuple[int, int, float] | None


@dataclass(frozen=True)
class Comparison:
    """Two models on one protocol; intervals and p-values are about the items drawn, not about trainings."""

    protocol: str
    differences: dict[str, Difference]
    num_bootstrap: int
    num_permutations: int
    seed: int

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {
            "protocol": self.protocol,
            "differences": {name: _plain(one) for name, one in self.differences.items()},
            "num_bootstrap": self.num_bootstrap,
            "num_permutations": self.num_permutations,
            "seed": self.seed,
        }

    def render(self) -> str:
        """A plain-text table."""
        lines = [f"{self.protocol}: first - second"]
        for name, one in self.differences.items():
            text = f"{name:<26}{one.first:.4f} - {one.second:.4f} = {one.difference:+.4f}"
            if one.interval is not None:
                text += "   95 %: {:+.4f} .. {:+.4f}".format(*one.interval)
            if one.p_permutation is not None:
                text += f"   p {one.p_permutation:.4g}"
            if one.mcnemar is not None:
                text += "   McNemar {} : {}, p {:.4g}".format(*one.mcnemar)
            lines.append(text)
        return "\n".join(lines)


def _plain(one: Difference) -> dict[str, object]:
    only_first, only_second, p = one.mcnemar or (None, None, None)
    return {
        "first": one.first,
        "second": one.second,
        "difference": one.difference,
        "interval": None if one.interval is None else list(one.interval),
        "p_permutation": one.p_permutation,
        "mcnemar": None
        if one.mcnemar is None
        else {"only_first": only_first, "only_second": only_second, "p": p},
    }


def compare(
    first: Outcomes,
    second: Outcomes,
    *,
    num_bootstrap: int = 1000,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Differences of all figures that both have.

    - Bootstrap: the same items are drawn for both models; thresholds are found anew in every replicate.
    - Permutation: under the null hypothesis the two outcomes of an item may be swapped; the statistic is the
      difference of the means of the items' values at each model's own thresholds, and p = (1 + as large or
      larger) / (1 + permutations) (Phipson, Smyth, Permutation p-values should never be zero, 2010).
    - McNemar, exact: of the items that exactly one model got right, half would be the first's.

    Args:
        first: outcomes of one model.
        second: outcomes of the other on the same items in the same order.
        num_bootstrap: replicates; 0 = no intervals.
        num_permutations: random swaps; 0 = no p-values by permutation.
        seed: of both.

    Raises:
        ValueError: outcomes of different protocols or items, or a negative number.
    """
    if first.protocol != second.protocol or not np.array_equal(first.strata, second.strata):
        raise ValueError("second: outcomes of the same protocol on the same items expected")
    for name, num in (("num_bootstrap", num_bootstrap), ("num_permutations", num_permutations)):
        if num < 0:
            raise ValueError(f"{name} must be 0 or more, got {num}")
    ours, theirs = first.values(), second.values()
    spread = _spread(first, second, num_bootstrap, seed)
    differences = {}
    for name in (name for name in ours if name in theirs):
        p, table = None, None
        if name in first.per_item:
            pair = _counted(first.per_item[name], second.per_item[name])
            p = permutation_p(pair[0] - pair[1], num_permutations, seed)
            table = _mcnemar(*pair)
        gap = ours[name] - theirs[name]
        differences[name] = Difference(ours[name], theirs[name], gap, spread.get(name), p, table)
    return Comparison(first.protocol, differences, num_bootstrap, num_permutations, seed)


def _spread(first: Outcomes, second: Outcomes, num: int, seed: int) -> dict[str, Interval]:
    """Percentiles of the differences over replicates that both models share."""
    parts: dict[str, list[np.ndarray]] = {}
    for weights in bootstrap_weights(first.strata, num, seed):
        ours, theirs = first.figures(weights), second.figures(weights)
        for name in ours.keys() & theirs.keys():
            parts.setdefault(name, []).append(ours[name] - theirs[name])
    found = {}
    for name, values in parts.items():
        low, high = np.percentile(np.concatenate(values), (2.5, 97.5))
        found[name] = (float(low), float(high))
    return found


def _counted(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of items that count for both."""
    kept = ~(np.isnan(first) | np.isnan(second))
    return first[kept], second[kept]


def permutation_p(gaps: np.ndarray, num: int, seed: int) -> float | None:
    """Two-sided p of a mean of paired differences float64 [q] under random signs; None for ``num`` 0."""
    if not num:
        return None
    gaps = gaps[gaps != 0]  # swapping equals changes nothing
    observed = abs(gaps.sum())
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // max(1, len(gaps)))
    larger = 0
    for start in range(0, num, chunk):
        signs = rng.integers(0, 2, (min(chunk, num - start), len(gaps))) * 2 - 1
        larger += int((abs(signs @ gaps) >= observed * (1 - 1e-12) - 1e-15).sum())
    return (1 + larger) / (1 + num)


def _mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float] | None:
    if not all(np.isin(side, (0.0, 1.0)).all() for side in (first, second)):
        return None
    only_first = int(((first == 1) & (second == 0)).sum())
    only_second = int(((first == 0) & (second == 1)).sum())
    return only_first, only_second, mcnemar_p(only_first, only_second)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: a binomial of the discordant items with one half.

    McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    num, fewer = only_first + only_second, min(only_first, only_second)
    whole = math.lgamma(num + 1) - num * math.log(2)
    logs = (whole - math.lgamma(k + 1) - math.lgamma(num - k + 1) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(math.exp(one) for one in logs))
