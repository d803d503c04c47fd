"""What a protocol found, item by item, and what is said of it: figures, intervals, JSON, a table.

An item is a pair, a query or a search. Every protocol but verification ends in `Outcomes`, so that intervals
and comparisons of two models (`comparison.py`) are written once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mpsoftmax.evaluate.bootstrap import intervals
from mpsoftmax.evaluate.result import Interval

Figures = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A protocol's findings on q items.

    Attributes:
        protocol: its name.
        per_item: by figure, float64 [q]: what each item adds to it at the thresholds of the whole (1 a hit,
            0 a miss; an average precision); NaN where the item does not count in that figure. Figures that
            are no mean over items (AUC) are not in it.
        strata: int64 [q], what the bootstrap draws within.
        figures: from weights int64 [r, q] to every figure, float64 [r].
        counts: how many of what there were.
        unsupported: figures that rest on too few items to say much.
    """

    protocol: str
    per_item: Mapping[str, np.ndarray]
    strata: np.ndarray
    figures: Figures
    counts: Mapping[str, int]
    unsupported: frozenset[str] = field(default=frozenset())

    def __len__(self) -> int:
        return len(self.strata)

    def values(self) -> dict[str, float]:
        """The figures themselves."""
        found = self.figures(np.ones((1, len(self)), np.int64))
        return {name: float(value[0]) for name, value in found.items()}


@dataclass(frozen=True)
class Figure:
    """A rate in [0, 1], its 95 % bootstrap interval (None without one), and whether enough items carry it."""

    value: float
    interval: Interval | None
    supported: bool


@dataclass(frozen=True)
class ProtocolResult:
    """What a protocol says of a model.

    Attributes:
        protocol: its name.
        figures: by name.
        counts: how many of what there were.
        num_bootstrap: replicates behind the intervals; 0 = none.
        seed: of the bootstrap.
    """

    protocol: str
    figures: Mapping[str, Figure]
    counts: Mapping[str, int]
    num_bootstrap: int
    seed: int

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        figures = {
            name: {
                "value": one.value,
                "interval": None if one.interval is None else list(one.interval),
                "supported": one.supported,
            }
            for name, one in self.figures.items()
        }
        return {
            "figures": figures,
            "counts": dict(self.counts),
            "num_bootstrap": self.num_bootstrap,
            "seed": self.seed,
        }

    def render(self) -> str:
        """A plain-text table."""
        title = ", ".join(f"{num} {what.replace('_', ' ')}" for what, num in self.counts.items())
        lines = [f"{self.protocol}: {title}"]
        for name, one in self.figures.items():
            span = "" if one.interval is None else "95 %: {:.4f} .. {:.4f}".format(*one.interval)
            note = "" if one.supported else "  too few to carry it"
            lines.append(f"{name:<26}{one.value:<12.4f}{span}{note}".rstrip())
        return "\n".join(lines)


def summarise(outcomes: Outcomes, *, num_bootstrap: int = 1000, seed: int = 0) -> ProtocolResult:
    """Figures with their intervals.

    Args:
        outcomes: of one protocol.
        num_bootstrap: replicates; 0 = no intervals.
        seed: of the bootstrap; the same seed gives the same intervals.

    Raises:
        ValueError: ``num_bootstrap`` is negative.
    """
    if num_bootstrap < 0:
        raise ValueError(f"num_bootstrap must be 0 or more, got {num_bootstrap}")
    spread = intervals(outcomes.strata, outcomes.figures, num_bootstrap, seed)
    figures = {
        name: Figure(value, spread.get(name), name not in outcomes.unsupported)
        for name, value in outcomes.values().items()
    }
    return ProtocolResult(outcomes.protocol, figures, outcomes.counts, num_bootstrap, seed)


def means(per_item: Mapping[str, np.ndarray]) -> Figures:
    """Figures that are weighted means of what the items add, those that do not count (NaN) left out."""
    counted = {name: np.flatnonzero(~np.isnan(values)) for name, values in per_item.items()}

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, values in per_item.items():
            rows = counted[name]
            taken = weights[:, rows]
            found[name] = taken @ values[rows] / taken.sum(1)
        return found

    return figures


def of_queries(
    protocol: str, per_item: Mapping[str, np.ndarray], lost: np.ndarray, **counts: int
) -> Outcomes:
    """Outcomes of queries whose figures are means over those that have a match.

    Args:
        protocol: its name.
        per_item: by figure, float64 [q].
        lost: bool [q], queries without a match; they count in no figure.
        counts: of the gallery, beside those of the queries.
    """
    queries = {"queries": int((~lost).sum()), "queries_without_a_match": int(lost.sum())}
    return Outcomes(
        protocol=protocol,
        per_item=per_item,
        strata=lost.astype(np.int64),
        figures=means(per_item),
        counts={**queries, **counts},
    )
