"""Mining rules: which classes of other baskets are negatives of a sample.

A sample's own basket is internally clean: its classes are always negatives. A class of another basket may be
the same person. A rule decides per sample, without gradient, from cosines; at most one class of each other
basket can be the same identity. Meng et al., 2022 (arXiv 2201.09308) mine by similarity and add negatives as
training goes; the rules R1 to R5 are our reconstruction.

A rule is a description. What it needs of other ranks before the sweep is in `baskets.py`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor


def check_cosine(part: object, name: str, low: float = -1.0, high: float = 1.0) -> None:
    """Raise ValueError unless a field lies between two cosines."""
    value = getattr(part, name)
    if not low <= value <= high:
        raise ValueError(
            f"{type(part).__name__}.{name}: {value!r}; allowed: {low} <= {name} <= {high} (cosine)"
        )


def check_number(part: object, name: str) -> None:
    """Raise ValueError unless a field is a whole number of at least 1."""
    value = getattr(part, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{type(part).__name__}.{name}: {value!r}; allowed: a whole number >= 1")


class Rule:
    """What every mining rule offers."""

    needs_target: ClassVar[bool] = False
    """`limit` reads the target cosine, which must then be known on every rank before the sweep."""
    num_dropped: int = 0
    """How many of the nearest classes of each other basket are looked up before the sweep."""
    drop_above: float = -2.0
    """Of those, the ones at or above this cosine are left out."""
    own_only: ClassVar[bool] = False
    """No class of another basket counts."""
    all_distinct: ClassVar[bool] = False
    """Every class of another basket counts."""

    def limit(self, t: Tensor) -> Tensor | None:
        """[B] cosine at and above which classes of other baskets are left out; None: no limit.

        Args:
            t: [B] target cosines over all shards; zeros unless `needs_target`.
        """
        return None


@dataclass(frozen=True)
class AllDistinct(Rule):
    """All classes are different people: the union head. Wrong wherever identities recur; a baseline."""

    all_distinct: ClassVar[bool] = True


@dataclass(frozen=True)
class OwnBasket(Rule):
    """Negatives of the own basket only: a head a data set. Never wrong, but baskets never meet."""

    own_only: ClassVar[bool] = True


@dataclass(frozen=True)
class Threshold(Rule):
    """R1: classes of other baskets below a fixed cosine."""

    tau: float = 0.5

    def __post_init__(self) -> None:
        """Check tau."""
        check_cosine(self, "tau")

    def limit(self, t: Tensor) -> Tensor:
        """See Rule.limit."""
        return torch.full_like(t, self.tau)


@dataclass(frozen=True)
class TargetRelative(Rule):
    """R2: classes of other baskets with a cosine below kappa t - delta, t the target's.

    delta = 0 with kappa < 1 gives the form kappa t.
    """

    needs_target: ClassVar[bool] = True
    delta: float = 0.2
    kappa: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        check_cosine(self, "delta", 0.0, 2.0)
        if not 0.0 < self.kappa <= 1.0:
            raise ValueError(
                f"TargetRelative.kappa: {self.kappa!r}; allowed: 0 < kappa <= 1 (factor of the target cosine)"
            )

    def limit(self, t: Tensor) -> Tensor:
        """See Rule.limit."""
        return self.kappa * t - self.delta


@dataclass(frozen=True)
class TopOne(Rule):
    """R3: of each other basket, leave out the nearest class where it is at or above tau.

    Uses the one thing that is certain: at most one class of a basket is the same identity.
    """

    tau: float = 0.3

    def __post_init__(self) -> None:
        """Check tau."""
        check_cosine(self, "tau")

    @property
    def num_dropped(self) -> int:  # type: ignore[override]
        """The nearest."""
        return 1

    @property
    def drop_above(self) -> float:  # type: ignore[override]
        """Tau."""
        return self.tau


@dataclass(frozen=True)
class TopK(Rule):
    """R4: of each other basket, always leave out the k nearest classes."""

    k: int = 1

    def __post_init__(self) -> None:
        """Check k."""
        check_number(self, "k")

    @property
    def num_dropped(self) -> int:  # type: ignore[override]
        """K."""
        return self.k


@dataclass(frozen=True)
class Hardest(Rule):
    """R5: of what another rule leaves of the other baskets, only the num most similar classes."""

    num: int = 100
    after: Rule = field(default_factory=TopOne)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_number(self, "num")
        if not isinstance(self.after, Rule) or isinstance(self.after, Hardest | OwnBasket):
            raise ValueError(
                f"Hardest.after: {self.after!r}; allowed: a rule that leaves something to choose from, and "
                "not another Hardest"
            )

    @property
    def needs_target(self) -> bool:  # type: ignore[override]
        """As the rule before."""
        return self.after.needs_target

    @property
    def num_dropped(self) -> int:  # type: ignore[override]
        """As the rule before."""
        return self.after.num_dropped

    @property
    def drop_above(self) -> float:  # type: ignore[override]
        """As the rule before."""
        return self.after.drop_above

    def limit(self, t: Tensor) -> Tensor | None:
        """As the rule before."""
        return self.after.limit(t)


@dataclass(frozen=True)
class Overlap(Rule):
    """Known duplicates are left out: pairs (class, class) of one identity in two baskets.

    What a human review of `likely duplicates` gives, or an oracle in an experiment.
    """

    pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Check the pairs."""
        pairs = tuple(tuple(int(one) for one in pair) for pair in self.pairs)
        for pair in pairs:
            if len(pair) != 2 or pair[0] == pair[1] or min(pair) < 0:
                raise ValueError(
                    f"Overlap.pairs: {pair}; allowed: pairs of two different class ids"
                )
        object.__setattr__(self, "pairs", pairs)


RULES: dict[str, type[Rule]] = {
    "all_distinct": AllDistinct,
    "own": OwnBasket,
    "threshold": Threshold,
    "target_relative": TargetRelative,
    "top_one": TopOne,
    "top_k": TopK,
    "hardest": Hardest,
    "known": Overlap,
}


def rule_named(name: str) -> Rule:
    """The rule of that name with its defaults.

    Raises:
        ValueError: the name is not known.
    """
    if name not in RULES:
        raise ValueError(f"baskets.rule: {name!r} is not known; allowed: {', '.join(RULES)}")
    return RULES[name]()
