"""What an objective is: a function Phi(t, l, a; context) of a few numbers per sample.

t is the target cosine without margin, l = log sum over the negatives of exp(g(z)), a = |f| the raw
feature's norm. An objective sees vectors of length B and nothing else: no rank, no shard, no class row;
the head differentiates it by autograd and carries (dPhi/dt, dPhi/dl, dPhi/da) back (docs/architecture.md).
g(z) = scale * z, or a * z for SphereFace, unless the objective names a `transform` for hard negatives.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import HardNegatives

# arccos has an infinite slope at +-1; the exact margin derivative sin(theta + m) / sin(theta) is bounded
# by stopping this far short of it (opensphere's choice). Past it the target cosine gets no gradient.
COSINE_CLAMP = 1e-5

State = Mapping[str, float]


@dataclass(frozen=True)
class Context:
    """What an objective may know of a sample beside t, l and a. All of it without gradient."""

    step: int = 0
    """Optimiser steps taken before this one."""
    state: State = field(default_factory=dict)
    """The objective's running statistics, this batch included where it trains."""
    basket: Tensor | None = None
    """int64 [n]: data set of each sample, where there are several."""
    hard_sum: Tensor | None = None
    """[n]: sum of the hard negatives' cosines over all shards."""
    hard_count: Tensor | None = None
    """[n]: their number."""

    def of(self, samples: Tensor) -> "Context":
        """The context of some samples: a mask or index [m]."""
        parts = {name: getattr(self, name) for name in ("basket", "hard_sum", "hard_count")}
        chosen = {name: None if x is None else x[samples] for name, x in parts.items()}
        return replace(self, **chosen)


EMPTY = Context()


def softplus(u: Tensor) -> Tensor:
    """log(1 + e^u), exact over the whole range (torch's own turns linear above 20)."""
    return torch.logaddexp(u, torch.zeros_like(u))


def cross_entropy(negatives: Tensor, target_logit: Tensor) -> Tensor:
    """-log softmax at the target, from the negatives' log-sum-exp: sp(l - phi)."""
    return softplus(negatives - target_logit)


def angle(t: Tensor) -> Tensor:
    """Arccos of a cosine, in radians, with a bounded slope."""
    return torch.arccos(t.clamp(-1.0 + COSINE_CLAMP, 1.0 - COSINE_CLAMP))


def add_angle(t: Tensor, margin_rad: Tensor | float) -> Tensor:
    """cos(arccos t + margin), for thresholds: exact up to |t| = 1, not to be differentiated there."""
    return torch.cos(torch.arccos(t.clamp(-1.0, 1.0)) + margin_rad)


@dataclass(frozen=True)
class Objective(ABC):
    """What to minimise, per sample. All fields are dimensionless, angles in radians."""

    scale_is_norm: ClassVar[bool] = False
    """Negatives are scaled by the sample's own feature norm, and gradient flows through it."""
    needs_target: ClassVar[bool] = False
    """`transform` or `advance` reads t, which must then be known on every rank before the sweep."""

    @property
    @abstractmethod
    def cosine_scale(self) -> float:
        """S in g(z) = s z (1 where the feature norm is the scale)."""

    def scale_at(self, state: State) -> float:
        """S with these running statistics: the cosine scale, unless it moves."""
        return self.cosine_scale

    def for_classes(self, num_classes: int) -> "Objective":
        """This objective for that many classes: itself, unless a number of it depends on them."""
        return self

    @abstractmethod
    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """Phi: loss of each sample.

        Args:
            t: [B] target cosines without margin.
            negatives: [B] log-sum-exp of the negatives' logits; -inf where a sample has none.
            norm: [B] norms of the raw features.
            context: The rest.

        Returns:
            [B] losses; differentiable in every argument the objective uses.
        """

    def transform(self, t: Tensor, context: Context) -> HardNegatives | None:
        """How the negatives' cosines become logits; None where every g(z) = s z.

        Args:
            t: [B] target cosines over all shards; zeros unless `needs_target`.
            context: State and baskets; no hard sums yet.
        """
        return None

    def logit_range(self, state: State) -> tuple[float, float] | None:
        """(smallest, largest) value of g for cosines in [-1, 1]; None if no constant bounds it."""
        return (-self.cosine_scale, self.cosine_scale)

    def initial_state(self) -> dict[str, float]:
        """Running statistics before the first step; empty for most."""
        return {}

    def advance(self, state: State, t: Tensor, norm: Tensor) -> dict[str, float]:
        """The running statistics with one more global batch; committed by `head.step()`.

        Args:
            state: The statistics so far.
            t: [B] target cosines; zeros unless `needs_target`.
            norm: [B] feature norms.
        """
        return dict(state)

    def advance_after(self, state: State, t: Tensor, negatives: Tensor) -> dict[str, float]:
        """What `advance` gave, once the negatives of its batch are known; for the batches to come.

        Args:
            state: As `advance` left it.
            t: [B] target cosines.
            negatives: [m] log-sum-exp of the negatives' logits, -inf where a sample has none; of the samples
                that met their negatives (all B but with DSoftmaxB).
        """
        return dict(state)

    def check_state(self, state: State) -> None:  # noqa: B027  most have no statistics to check
        """Raise ValueError where no training of this objective leaves such statistics.

        A checkpoint names the numbers only by their order: those of another objective must not pass.
        """

    def statistics(self, t: Tensor, norm: Tensor, context: Context) -> dict[str, Tensor]:
        """Scalars a user of this objective watches, for `head.last_stats`."""
        return {}


@dataclass(frozen=True)
class SeparableObjective(Objective):
    """An objective that is a function of t plus a function of l: loss = intra + inter.

    Only such a one can sample the samples of its second part (DSoftmaxB).
    """

    @abstractmethod
    def intra(self, t: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """[B] the part that sees the sample's own class only."""

    @abstractmethod
    def inter(self, negatives: Tensor) -> Tensor:
        """[B] the part that sees the other classes only."""

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        return self.intra(t, norm, context) + self.inter(negatives)


def require(condition: bool, objective: object, field: str, allowed: str) -> None:
    """Raise ValueError naming the part, the field, its value and what is allowed."""
    if not condition:
        value = getattr(objective, field)
        raise ValueError(f"{type(objective).__name__}.{field}: {value!r}; allowed: {allowed}")


def check_statistic(objective: object, state: State, name: str, low: float, high: float) -> None:
    """Raise ValueError unless a loaded statistic is a number in [low, high], naming it and its objective."""
    if not low <= state[name] <= high:
        raise ValueError(
            f"head.objective_state: {name} {state[name]}; allowed: {low} <= {name} <= {high}, as "
            f"{type(objective).__name__} leaves it (of another objective?)"
        )


@dataclass(frozen=True)
class ScaledObjective(Objective):
    """Objectives with a constant scale s."""

    scale: float = 64.0

    def __post_init__(self) -> None:
        """Check the scale."""
        require(0 < self.scale < math.inf, self, "scale", "a positive number")

    @property
    def cosine_scale(self) -> float:
        """S."""
        return self.scale
