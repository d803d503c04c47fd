"""What a head is asked to be: names resolved, every part of its kind, combinations that mean something."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mpsoftmax.head.baskets import Baskets
from mpsoftmax.head.candidates import CANDIDATES, Candidates, DSoftmaxB
from mpsoftmax.head.mining import Hardest, Overlap, TopK
from mpsoftmax.head.negatives import NEGATIVES, AllNegatives, Negatives
from mpsoftmax.head.objectives import Objective, SeparableObjective, objective_named
from mpsoftmax.head.objectives.per_basket import per_basket
from mpsoftmax.head.row_optim import NoUpdate, RowRule, RowSGD
from mpsoftmax.head.weights import WEIGHTS, ClassCentres, Weights

P = TypeVar("P")


def check_choice(field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError unless value is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{field}: {value!r}; allowed: {', '.join(map(str, allowed))}")


def check_whole(field: str, value: int, least: int) -> None:
    """Raise ValueError unless value is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{field}: {value!r}; allowed: a whole number >= {least}")


def part(field: str, value: object, kind: type[P], named: dict[str, type[P]]) -> P:
    """An instance of `kind`, as it is or by the name of one with its defaults.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, str) and value in named:
        value = named[value]()
    if not isinstance(value, kind):
        names = ", ".join(named)
        raise ValueError(f"{field}: {value!r}; allowed: {names}, or an instance of {kind.__name__}")
    return value


@dataclass(frozen=True)
class Description:
    """The parts of a head, checked."""

    objective: Objective
    candidates: Candidates
    negatives: Negatives
    baskets: Baskets | None
    weights: Weights
    optimizer: RowRule

    @classmethod
    def of(
        cls,
        objective: Objective | str,
        candidates: Candidates | str,
        negatives: Negatives | str,
        baskets: Baskets | None,
        weights: Weights | str,
        optimizer: RowRule | None,
        untouched: str,
        num_classes: int,
        storage: str = "device",
    ) -> "Description":
        """The parts that were meant.

        Raises:
            ValueError: a part is unknown, or a combination has no meaning; says why.
        """
        if isinstance(objective, str):
            objective = objective_named(objective)
        weights = part("weights", weights, Weights, WEIGHTS)
        check_optimizer(weights, optimizer, untouched)
        described = cls(
            objective=part("objective", objective, Objective, {}).for_classes(num_classes),
            candidates=part("candidates", candidates, Candidates, CANDIDATES),
            negatives=part("negatives", negatives, Negatives, NEGATIVES),
            baskets=baskets,
            weights=weights,
            optimizer=optimizer or (RowSGD() if weights.learned else NoUpdate()),
        )
        described.check_candidates()
        described.check_negatives()
        described.check_baskets(num_classes)
        described.check_storage(storage)
        described.margins_applied()
        return described

    def check_candidates(self) -> None:
        """DSoftmaxB samples one part of the loss: there must be two."""
        separable = isinstance(self.objective, SeparableObjective)
        if isinstance(self.candidates, DSoftmaxB) and not separable:
            raise ValueError(
                f"candidates: {self.candidates!r} with objective {type(self.objective).__name__}; allowed "
                "only with an objective that is a sum of a function of the target and a function of the "
                "negatives (DSoftmax): elsewhere the two cannot be sampled apart"
            )

    def check_negatives(self) -> None:
        """A filter and a re-weighting both say what a hard negative is."""
        hard = type(self.objective).transform is not Objective.transform
        if hard and not isinstance(self.negatives, AllNegatives):
            raise ValueError(
                f"negatives: {self.negatives!r} with objective {type(self.objective).__name__}; allowed: "
                "'all': this objective gives hard negatives more weight, a filter gives them none"
            )

    def check_baskets(self, num_classes: int) -> None:
        """The baskets must fill the table, and the rule must mean something for what a step sees."""
        baskets = self.baskets
        if baskets is None:
            return
        if not isinstance(baskets, Baskets):
            raise ValueError(f"baskets: {baskets!r}; allowed: None, or Baskets(sizes, rule)")
        if sum(baskets.sizes) != num_classes:
            raise ValueError(
                f"baskets.sizes: they sum to {sum(baskets.sizes)}; allowed: num_classes={num_classes}"
            )
        rule = baskets.rule.after if isinstance(baskets.rule, Hardest) else baskets.rule
        if isinstance(rule, TopK) and self.candidates.samples_classes:
            raise ValueError(
                f"baskets.rule: {rule!r} with candidates {self.candidates!r}; allowed with all classes "
                "only: of a sample of classes the nearest are hardly ever the same identity, and would "
                "be left out always (use top_one, which asks for a cosine)"
            )
        if isinstance(rule, Overlap):
            check_pairs(rule, baskets)

    def check_storage(self, storage: str) -> None:
        """Rows stored elsewhere are moved by the sample."""
        if storage == "device":
            return
        if not self.candidates.samples_classes:
            raise ValueError(
                f"storage: {storage!r} with candidates {self.candidates!r}; allowed with sampled classes "
                "only (Uniform, UniformBlocks, DSoftmaxK): otherwise every step would move the whole table"
            )
        if not self.weights.learned:
            raise ValueError(
                f"storage: {storage!r} with weights {self.weights!r}; allowed with learned rows only: "
                "centres are set by passes over the data, all at once"
            )

    def margins_applied(self) -> Objective:
        """The objective with the baskets' margins."""
        if self.baskets is None or self.baskets.margins is None:
            return self.objective
        return per_basket(self.objective, self.baskets.margins)


def check_pairs(rule: Overlap, baskets: Baskets) -> None:
    """Known duplicates name classes of two baskets of the table."""
    offsets = baskets.offsets()
    for pair in rule.pairs:
        if max(pair) >= offsets[-1]:
            raise ValueError(f"baskets.rule.pairs: {pair}; allowed: class ids below {offsets[-1]}")
        one, other = np.searchsorted(offsets, pair, side="right")
        if one == other:
            raise ValueError(
                f"baskets.rule.pairs: {pair} are two classes of basket {one - 1}; allowed: classes of two "
                "baskets: within one, no two classes are the same identity"
            )


def check_optimizer(weights: Weights, optimizer: RowRule | None, untouched: str) -> None:
    """Class centres move by their features."""
    if not isinstance(weights, ClassCentres):
        return
    if optimizer is not None:
        raise ValueError(
            f"optimizer: {optimizer!r} with weights {weights!r}; allowed: None: class centres follow their "
            "features and have no gradient"
        )
    if untouched != "frozen":
        raise ValueError(
            f"untouched: {untouched!r} with weights {weights!r}; allowed: 'frozen': without an "
            "optimiser there is nothing to catch up"
        )
