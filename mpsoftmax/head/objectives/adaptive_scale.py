"""Objectives whose scale follows training: AdaCos."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpsoftmax.head.objectives.base import (
    EMPTY,
    Context,
    Objective,
    State,
    check_statistic,
    cross_entropy,
    require,
)

LEAST_SCALE, LARGEST_SCALE = 1.0, 1e6


@dataclass(frozen=True)
class AdaCos(Objective):
    """sp(l - s t) with a scale that is not chosen. Zhang et al., 2019 (arXiv 1905.00292).

    Fixed: s = sqrt(2) ln(C - 1), eq. 11. Dynamic, eq. 15: after each batch

        s <- ln(mean_i sum_j exp(s z_ij)) / cos(min(pi / 4, median theta))

    over the negatives and samples of all ranks; with sampled candidates, over these. Two deviations of ours:
    it counts from the next batch on (with accumulation: the next backward call's), since using it at once, as
    the paper does, takes a second sweep; and s moves by `momentum` of the way (1: the paper's): it can run
    away while class rows still point alike.
    """

    scale: float | None = None
    """Where it starts, at least 1; None: sqrt(2) ln(C - 1)."""
    dynamic: bool = True
    momentum: float = 0.02
    """Weight of the new batch's scale."""

    def __post_init__(self) -> None:
        """Check the fields."""
        fits = self.scale is None or LEAST_SCALE <= self.scale <= LARGEST_SCALE
        require(fits, self, "scale", "None, or 1 <= scale <= 1e6")
        require(
            0 < self.momentum <= 1, self, "momentum", "0 < momentum <= 1 (weight of the new batch)"
        )

    @property
    def cosine_scale(self) -> float:
        """S at the start."""
        if self.scale is None:
            raise ValueError("AdaCos.scale: None; allowed: a number here (for_classes gives one)")
        return self.scale

    def for_classes(self, num_classes: int) -> "AdaCos":
        """See Objective.for_classes."""
        if self.scale is not None:
            return self
        scale = math.sqrt(2.0) * math.log(max(num_classes, 2) - 1)
        return replace(self, scale=max(LEAST_SCALE, scale))

    def scale_at(self, state: State) -> float:
        """See Objective.scale_at."""
        return state["scale"] if self.dynamic else self.cosine_scale

    def logit_range(self, state: State) -> tuple[float, float]:
        """See Objective.logit_range."""
        return (-self.scale_at(state), self.scale_at(state))

    def initial_state(self) -> dict[str, float]:
        """See Objective.initial_state."""
        return {"scale": self.cosine_scale} if self.dynamic else {}

    def advance_after(self, state: State, t: Tensor, negatives: Tensor) -> dict[str, float]:
        """See Objective.advance_after. A batch that gives no scale of at least 1 leaves it as it is."""
        if not self.dynamic or t.numel() == 0:
            return dict(state)
        log_mean = float(torch.logsumexp(negatives.double(), 0)) - math.log(t.numel())
        median = float(torch.arccos(t.double().clamp(-1.0, 1.0)).median())
        scale = log_mean / math.cos(min(math.pi / 4.0, median))
        if not LEAST_SCALE <= scale <= LARGEST_SCALE:
            return dict(state)
        return {"scale": self.momentum * scale + (1.0 - self.momentum) * state["scale"]}

    def check_state(self, state: State) -> None:
        """See Objective.check_state."""
        if self.dynamic:
            check_statistic(self, state, "scale", LEAST_SCALE, LARGEST_SCALE)

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        return cross_entropy(negatives, self.scale_at(context.state) * t)

    def statistics(self, t: Tensor, norm: Tensor, context: Context) -> dict[str, Tensor]:
        """See Objective.statistics."""
        return {"scale": torch.tensor(self.scale_at(context.state))}
