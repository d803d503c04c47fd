"""One objective with another margin for each basket's samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mpsoftmax.head.objectives.base import EMPTY, Context, Objective, SeparableObjective, State
from mpsoftmax.kernels.problem import HardNegatives


@dataclass(frozen=True)
class PerBasket(Objective):
    """The objective of a sample is that of its basket; all are one kind, with margins of their own."""

    members: tuple[Objective, ...]

    @property
    def scale_is_norm(self) -> bool:  # type: ignore[override]
        """As the objective that was given margins."""
        return self.members[0].scale_is_norm

    @property
    def needs_target(self) -> bool:  # type: ignore[override]
        """As the objective that was given margins."""
        return self.members[0].needs_target

    @property
    def cosine_scale(self) -> float:
        """S, the same for all."""
        return self.members[0].cosine_scale

    def scale_at(self, state: State) -> float:
        """See Objective.scale_at: the same for all."""
        return self.members[0].scale_at(state)

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        return self._each(
            context, lambda one, own: one.loss(t[own], negatives[own], norm[own], context.of(own))
        )

    def transform(self, t: Tensor, context: Context) -> HardNegatives | None:
        """See Objective.transform: the thresholds are those of the baskets."""
        whole = self.members[0].transform(t, context)
        if whole is None:
            return None

        def threshold(one: Objective, own: Tensor) -> Tensor:
            hard = one.transform(t[own], context.of(own))
            assert hard is not None
            return hard.threshold

        return replace(whole, threshold=self._each(context, threshold))

    def logit_range(self, state: State) -> tuple[float, float] | None:
        """See Objective.logit_range: a margin on the target does not change it."""
        return self.members[0].logit_range(state)

    def initial_state(self) -> dict[str, float]:
        """See Objective.initial_state."""
        return self.members[0].initial_state()

    def advance(self, state: State, t: Tensor, norm: Tensor) -> dict[str, float]:
        """See Objective.advance."""
        return self.members[0].advance(state, t, norm)

    def advance_after(self, state: State, t: Tensor, negatives: Tensor) -> dict[str, float]:
        """See Objective.advance_after."""
        return self.members[0].advance_after(state, t, negatives)

    def check_state(self, state: State) -> None:
        """See Objective.check_state."""
        self.members[0].check_state(state)

    def statistics(self, t: Tensor, norm: Tensor, context: Context) -> dict[str, Tensor]:
        """See Objective.statistics."""
        return self.members[0].statistics(t, norm, context)

    def _each(self, context: Context, part: Callable[[Objective, Tensor], Tensor]) -> Tensor:
        """[B] values put together from those of each basket's samples."""
        assert context.basket is not None
        owners = [torch.nonzero(context.basket == b)[:, 0] for b in range(len(self.members))]
        values = [part(one, own) for one, own in zip(self.members, owners, strict=True)]
        order = torch.cat(owners).argsort()
        return torch.cat(values)[order]


@dataclass(frozen=True)
class SeparablePerBasket(PerBasket, SeparableObjective):  # pyright: ignore[reportIncompatibleVariableOverride]
    """PerBasket of separable objectives, which it is itself: a margin acts on the target's part only."""

    def intra(self, t: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See SeparableObjective.intra."""

        def part(one: Objective, own: Tensor) -> Tensor:
            assert isinstance(one, SeparableObjective)
            return one.intra(t[own], norm[own], context.of(own))

        return self._each(context, part)

    def inter(self, negatives: Tensor) -> Tensor:
        """See SeparableObjective.inter."""
        first = self.members[0]
        assert isinstance(first, SeparableObjective)
        return first.inter(negatives)


def per_basket(objective: Objective, margins: Sequence[float | None]) -> Objective:
    """`objective` with the margin of each basket; None keeps its own.

    Raises:
        ValueError: the objective has no field `margin`, or refuses one of them.
    """
    if all(margin is None for margin in margins):
        return objective
    if "margin" not in {field.name for field in fields(objective)}:
        raise ValueError(
            f"baskets.margins: {list(margins)!r}; allowed only with an objective that has a margin, which "
            f"{type(objective).__name__} has not"
        )
    one = [objective if m is None else replace(objective, margin=m) for m in margins]  # type: ignore[call-arg]

    kind = SeparablePerBasket if isinstance(objective, SeparableObjective) else PerBasket
    return kind(tuple(one))
