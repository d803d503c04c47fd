"""The objectives: functions Phi(t, l, a) of two or three numbers per sample.

t is the target cosine without margin, l = log sum over the negatives of exp(g(z)), a = |f| the raw
feature's norm. An objective sees vectors of length B and nothing else: no rank, no shard, no class row;
the head differentiates it by autograd and carries (dPhi/dt, dPhi/dl, dPhi/da) back (docs/architecture.md).
Here g(z) = scale * z, or a * z for SphereFace.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

# arccos has an infinite slope at +-1; the exact margin derivative sin(theta + m) / sin(theta) is bounded
# by stopping this far short of it (opensphere's choice). Past it the target cosine gets no gradient.
COSINE_CLAMP = 1e-5


def softplus(u: Tensor) -> Tensor:
    """log(1 + e^u), exact over the whole range (torch's own turns linear above 20)."""
    return torch.logaddexp(u, torch.zeros_like(u))


def cross_entropy(negatives: Tensor, target_logit: Tensor) -> Tensor:
    """-log softmax at the target, from the negatives' log-sum-exp: sp(l - phi)."""
    return softplus(negatives - target_logit)


def angle(t: Tensor) -> Tensor:
    """Arccos of a cosine, in radians, with a bounded slope."""
    return torch.arccos(t.clamp(-1.0 + COSINE_CLAMP, 1.0 - COSINE_CLAMP))


@dataclass(frozen=True)
class Objective(ABC):
    """What to minimise, per sample. All fields are dimensionless, angles in radians."""

    scale_is_norm: ClassVar[bool] = False
    """Negatives are scaled by the sample's own feature norm, and gradient flows through it."""

    @property
    @abstractmethod
    def cosine_scale(self) -> float:
        """S in g(z) = s z (1 where the feature norm is the scale)."""

    @abstractmethod
    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor) -> Tensor:
        """Phi: loss of each sample.

        Args:
            t: [B] target cosines without margin.
            negatives: [B] log-sum-exp of the negatives' logits; -inf where a sample has none.
            norm: [B] norms of the raw features.

        Returns:
            [B] losses; differentiable in every argument the objective uses.
        """

    def logit_range(self) -> tuple[float, float] | None:
        """(smallest, largest) value of g for cosines in [-1, 1]; None if no constant bounds it."""
        return (-self.cosine_scale, self.cosine_scale)


def require(condition: bool, objective: Objective, field: str, allowed: str) -> None:
    """Raise ValueError naming the objective, the field, its value and what is allowed."""
    if not condition:
        value = getattr(objective, field)
        raise ValueError(f"{type(objective).__name__}.{field}: {value!r}; allowed: {allowed}")


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


@dataclass(frozen=True)
class NormFace(ScaledObjective):
    """Normalised softmax: sp(l - s t). Wang et al., 2017, eq. 6 (arXiv 1704.06369)."""

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor) -> Tensor:
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

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor) -> Tensor:
        """See Objective.loss."""
        return cross_entropy(negatives, self.scale * (t - self.margin))


@dataclass(frozen=True)
class ArcFace(ScaledObjective):
    """Additive angular margin: sp(l - s cos(arccos t + m)). Deng et al., 2019, eq. 3 (1801.07698).

    The derivative is the exact one; insightface's code drops the factor sin(theta + m) / sin(theta).
    """

    margin: float = 0.5

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(0 <= self.margin < math.pi / 2, self, "margin", "0 <= margin < pi/2 (radians)")

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor) -> Tensor:
        """See Objective.loss."""
        if self.margin == 0:  # no arccos, hence no clamp: exactly NormFace
            return cross_entropy(negatives, self.scale * t)
        return cross_entropy(negatives, self.scale * torch.cos(angle(t) + self.margin))


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

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor) -> Tensor:
        """See Objective.loss."""
        if self.m1 == 1 and self.m2 == 0:
            return cross_entropy(negatives, self.scale * (t - self.m3))
        target = torch.cos(self.m1 * angle(t) + self.m2) - self.m3
        return cross_entropy(negatives, self.scale * target)


@dataclass(frozen=True)
class SphereFace(Objective):
    """A-Softmax: sp(l - a (lam t + psi) / (1 + lam)). Liu et al., 2017, eq. 7 (arXiv 1704.08063).

    psi = (-1)^k cos(m theta) - 2k for theta in [k pi/m, (k+1) pi/m]; the negatives' logits are a z with
    a = |f|, and gradient flows through a on both sides. `lam` blends in the plain target logit.
    """

    scale_is_norm: ClassVar[bool] = True
    margin: int = 4
    lam: float = 5.0

    def __post_init__(self) -> None:
        """Check the fields."""
        whole = float(self.margin).is_integer() and 1 <= self.margin <= 16
        require(whole, self, "margin", "a whole number from 1 to 16 (it multiplies the angle)")
        require(0 <= self.lam < math.inf, self, "lam", "a number >= 0")

    @property
    def cosine_scale(self) -> float:
        """1: the feature norm is the scale."""
        return 1.0

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor) -> Tensor:
        """See Objective.loss."""
        theta = angle(t)
        k = torch.floor(theta * (self.margin / math.pi)).detach()
        psi = (1.0 - 2.0 * torch.remainder(k, 2.0)) * torch.cos(self.margin * theta) - 2.0 * k
        return cross_entropy(negatives, norm * (self.lam * t + psi) / (1.0 + self.lam))

    def logit_range(self) -> tuple[float, float] | None:
        """None: feature norms have no bound."""
        return None


OBJECTIVES: dict[str, type[Objective]] = {
    "normface": NormFace,
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": CombinedMargin,
    "sphereface": SphereFace,
}


def objective_named(name: str) -> Objective:
    """The objective of that name with its default margins.

    Raises:
        ValueError: the name is not known.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective: {name!r} is not known; allowed: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]()
