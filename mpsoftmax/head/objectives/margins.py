"""Margins on the target: NormFace, CosFace, ArcFace, the combined margin, SphereFace."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpsoftmax.head.objectives.base import (
    EMPTY,
    Context,
    Objective,
    ScaledObjective,
    State,
    add_angle,
    angle,
    cross_entropy,
    require,
)


@dataclass(frozen=True)
class NormFace(ScaledObjective):
    """Normalised softmax: sp(l - s t). Wang et al., 2017, eq. 6 (arXiv 1704.06369)."""

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        return cross_entropy(negatives, self.scale * t)


@dataclass(frozen=True)
class CosFace(ScaledObjective):
    """Additive cosine margin: sp(l - s (t - m)). Wang et al., 2018, eq. 4 (arXiv 1801.09414)."""

    margin: float = 0.4

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(0 <= self.margin < 2, self, "margin", "0 <= margin < 2 (cosine)")

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        return cross_entropy(negatives, self.scale * (t - self.margin))


ARCFACE_VARIANTS = ("exact", "straight_through", "fallback", "easy")


@dataclass(frozen=True)
class ArcFace(ScaledObjective):
    """Additive angular margin: sp(l - s cos(arccos t + m)). Deng et al., 2019, eq. 3 (1801.07698).

    Variants:
        exact: the formula and its derivative.
        straight_through: the same values, but the target logit's slope is s, without the factor
            sin(theta + m) / sin(theta): what insightface's arcface_torch computes. For old runs.
        fallback: s (t - m sin m) once theta + m passes pi, where the formula would rise again (the value
            jumps there); older insightface and CurricularFace code.
        easy: the margin only where t > 0.
    """

    margin: float = 0.5
    variant: str = "exact"

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(0 <= self.margin < math.pi / 2, self, "margin", "0 <= margin < pi/2 (radians)")
        allowed = ", ".join(ARCFACE_VARIANTS)
        require(self.variant in ARCFACE_VARIANTS, self, "variant", allowed)

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        return cross_entropy(negatives, self.scale * self.target(t))

    def target(self, t: Tensor) -> Tensor:
        """Target cosine after the margin, [B]."""
        if self.margin == 0:  # no arccos, hence no clamp: exactly NormFace
            return t
        if self.variant == "straight_through":
            return t + (add_angle(t.detach(), self.margin) - t.detach())
        moved = torch.cos(angle(t) + self.margin)
        if self.variant == "fallback":
            return with_fallback(t, moved, self.margin)
        return torch.where(t > 0, moved, t) if self.variant == "easy" else moved


def with_fallback(t: Tensor, moved: Tensor, margin: float) -> Tensor:
    """`moved` = cos(theta + m) while theta + m < pi, else t - m sin m."""
    return torch.where(t > math.cos(math.pi - margin), moved, t - margin * math.sin(margin))


@dataclass(frozen=True)
class CombinedMargin(ScaledObjective):
    """sp(l - s (cos(m1 arccos t + m2) - m3)). Deng et al., 2019, eq. 4 (arXiv 1801.07698).

    Past m1 theta + m2 = pi the published formula rises again; it is kept as published. Margins for which
    that already happens at a right angle are refused, since training starts there.
    """

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(self.m1 >= 1, self, "m1", "m1 >= 1")
        require(0 <= self.m2 < math.pi / 2, self, "m2", "0 <= m2 < pi/2 (radians)")
        require(0 <= self.m3 < 2, self, "m3", "0 <= m3 < 2 (cosine)")
        require(
            self.m1 * math.pi / 2 + self.m2 <= math.pi,
            self,
            "m1",
            "m1 * pi/2 + m2 <= pi, or the margin is not monotone at a right angle (use SphereFace)",
        )

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        if self.m1 == 1 and self.m2 == 0:
            return cross_entropy(negatives, self.scale * (t - self.m3))
        target = torch.cos(self.m1 * angle(t) + self.m2) - self.m3
        return cross_entropy(negatives, self.scale * target)


@dataclass(frozen=True)
class SphereFace(Objective):
    """A-Softmax: sp(l - a (lam t + psi) / (1 + lam)). Liu et al., 2017, eq. 7 (arXiv 1704.08063).

    psi = (-1)^k cos(m theta) - 2k for theta in [k pi/m, (k+1) pi/m]; the negatives' logits are a z with
    a = |f|, and gradient flows through a on both sides. `lam` blends in the plain target logit; with
    `lam_start` it is annealed as the authors' code does: max(lam, lam_start / (1 + lam_decay * step)).
    """

    scale_is_norm: ClassVar[bool] = True
    margin: int = 4
    lam: float = 5.0
    lam_start: float = 0.0
    lam_decay: float = 0.1

    def __post_init__(self) -> None:
        """Check the fields."""
        whole = float(self.margin).is_integer() and 1 <= self.margin <= 16
        require(whole, self, "margin", "a whole number from 1 to 16 (it multiplies the angle)")
        for name in ("lam", "lam_start", "lam_decay"):
            require(0 <= getattr(self, name) < math.inf, self, name, "a number >= 0")

    @property
    def cosine_scale(self) -> float:
        """1: the feature norm is the scale."""
        return 1.0

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        theta = angle(t)
        k = torch.floor(theta * (self.margin / math.pi)).detach()
        psi = (1.0 - 2.0 * torch.remainder(k, 2.0)) * torch.cos(self.margin * theta) - 2.0 * k
        lam = max(self.lam, self.lam_start / (1.0 + self.lam_decay * context.step))
        return cross_entropy(negatives, norm * (lam * t + psi) / (1.0 + lam))

    def logit_range(self, state: State) -> tuple[float, float] | None:
        """None: feature norms have no bound."""
        return None
