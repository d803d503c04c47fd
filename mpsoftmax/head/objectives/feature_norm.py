"""Margins that follow the feature's norm as a sign of image quality: AdaFace, MagFace."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsoftmax.head.objectives.base import (
    EMPTY,
    Context,
    ScaledObjective,
    State,
    angle,
    cross_entropy,
    require,
)

NORM_RANGE = (1e-3, 100.0)  # AdaFace's code clips norms to it
ANGLE_MARGIN = 1e-3  # and keeps the moved angle this far from 0 and pi


@dataclass(frozen=True)
class AdaFace(ScaledObjective):
    """sp(l - s (cos(theta - m k) - m - m k)), k the standardised feature norm. Kim et al., 2022 (2204.00964).

    k = clip(h (a - mean) / (std + 1e-3), -1, 1) without gradient; mean and std (n - 1) of the norms over the
    global batch are running averages, updated before use, starting at 20 and 100 as the authors' code does.
    """

    margin: float = 0.4
    h: float = 0.333
    momentum: float = 0.01

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(0 <= self.margin < math.pi / 2, self, "margin", "0 <= margin < pi/2")
        require(0 < self.h < math.inf, self, "h", "a positive number")
        require(
            0 < self.momentum <= 1, self, "momentum", "0 < momentum <= 1 (weight of the new batch)"
        )

    def initial_state(self) -> dict[str, float]:
        """See Objective.initial_state."""
        return {"norm_mean": 20.0, "norm_std": 100.0}

    def advance(self, state: State, t: Tensor, norm: Tensor) -> dict[str, float]:
        """See Objective.advance. A batch of one sample has no deviation and moves only the mean."""
        new, clipped = dict(state), norm.double().clamp(*NORM_RANGE)
        if clipped.numel() > 0:
            self._move(new, "norm_mean", clipped.mean())
        if clipped.numel() > 1:
            self._move(new, "norm_std", clipped.std())
        return new

    def _move(self, state: dict[str, float], name: str, value: Tensor) -> None:
        state[name] = self.momentum * float(value) + (1.0 - self.momentum) * state[name]

    def quality(self, norm: Tensor, state: State) -> Tensor:
        """K in [-1, 1], [B]; no gradient."""
        clipped = norm.detach().clamp(*NORM_RANGE)
        standard = (clipped - state["norm_mean"]) / (state["norm_std"] + 1e-3)
        return (self.h * standard).clamp(-1.0, 1.0)

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        k = self.quality(norm, context.state or self.initial_state())
        theta = (angle(t) - self.margin * k).clamp(ANGLE_MARGIN, math.pi - ANGLE_MARGIN)
        target = torch.cos(theta) - self.margin - self.margin * k
        return cross_entropy(negatives, self.scale * target)

    def statistics(self, t: Tensor, norm: Tensor, context: Context) -> dict[str, Tensor]:
        """See Objective.statistics."""
        return {name: torch.tensor(value) for name, value in context.state.items()}


@dataclass(frozen=True)
class MagFace(ScaledObjective):
    """Angular margin m(a) that grows with the feature norm; a regulariser. Meng et al., 2021 (2103.06627).

    m(a) runs linearly from lower_margin to upper_margin between the two norms, outside which a is clamped
    (and gets no gradient); regulariser * (a / upper_norm^2 + 1 / a) pulls norms up. The margin applies where
    t > 0.
    """

    lower_norm: float = 10.0
    upper_norm: float = 110.0
    lower_margin: float = 0.45
    upper_margin: float = 0.8
    regulariser: float = 35.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(0 < self.lower_norm < math.inf, self, "lower_norm", "a positive number")
        high, margins = self.upper_norm, (self.lower_margin, self.upper_margin)
        require(self.lower_norm < high < math.inf, self, "upper_norm", "above lower_norm")
        require(0 <= margins[0] <= margins[1], self, "lower_margin", "0 to upper_margin (radians)")
        require(margins[1] < math.pi / 2, self, "upper_margin", "below pi/2 (radians)")
        require(0 <= self.regulariser < math.inf, self, "regulariser", "a number >= 0")

    def margin_of(self, norm: Tensor) -> Tensor:
        """M(a) for a within the two norms, radians."""
        slope = (self.upper_margin - self.lower_margin) / (self.upper_norm - self.lower_norm)
        return slope * (norm - self.lower_norm) + self.lower_margin

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        a = norm.clamp(self.lower_norm, self.upper_norm)
        moved = torch.cos(angle(t) + self.margin_of(a))
        target = self.scale * torch.where(t > 0, moved, t)
        regularised = self.regulariser * (a / self.upper_norm**2 + 1.0 / a)
        return cross_entropy(negatives, target) + regularised

    def statistics(self, t: Tensor, norm: Tensor, context: Context) -> dict[str, Tensor]:
        """See Objective.statistics."""
        margin = self.margin_of(norm.clamp(self.lower_norm, self.upper_norm))
        return {"magnitude_margin": margin.sum() / max(1, margin.numel())}
