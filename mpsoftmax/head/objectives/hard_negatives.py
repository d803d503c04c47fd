"""Objectives that treat hard negatives apart: MV-Softmax, CurricularFace, NPCFace; Circle loss.

A negative is hard where its cosine exceeds a threshold, which depends on the sample's own target cosine but
for Circle loss. The threshold is a step: no gradient flows through it, nor through sums over the hard set.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpsoftmax.head.objectives.base import (
    EMPTY,
    Context,
    ScaledObjective,
    State,
    add_angle,
    angle,
    check_statistic,
    cross_entropy,
    require,
)
from mpsoftmax.head.objectives.margins import with_fallback
from mpsoftmax.kernels.problem import HardNegatives


def check_angular_margin(objective: ScaledObjective, field: str) -> None:
    """Raise unless the field is a margin in radians."""
    value = getattr(objective, field)
    require(0 <= value < math.pi / 2, objective, field, f"0 <= {field} < pi/2 (radians)")


MV_VARIANTS = ("am", "arc")


@dataclass(frozen=True)
class MVSoftmax(ScaledObjective):
    """Mis-classified vectors re-weighted: g = s (t_h z + t_h - 1) where hard. Wang et al., 2020 (1912.00833).

    Adaptive form. Variant "am": margin and threshold t - m, the margin only where t > m; "arc": both
    cos(theta + m), the margin only where t > 0. Hard where z exceeds the threshold.
    """

    needs_target: ClassVar[bool] = True
    scale: float = 32.0
    margin: float = 0.35
    hard_scale: float = 1.12
    variant: str = "am"

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(self.variant in MV_VARIANTS, self, "variant", ", ".join(MV_VARIANTS))
        require(1 <= self.hard_scale < math.inf, self, "hard_scale", "a number >= 1")
        if self.variant == "arc":
            check_angular_margin(self, "margin")
        require(0 <= self.margin < 2, self, "margin", "0 <= margin < 2 (cosine)")

    def transform(self, t: Tensor, context: Context) -> HardNegatives:
        """See Objective.transform."""
        h = self.hard_scale
        threshold = t - self.margin if self.variant == "am" else add_angle(t, self.margin)
        return HardNegatives(threshold=threshold, value=(h - 1.0, h, 0.0), slope=(h, 0.0))

    def logit_range(self, state: State) -> tuple[float, float]:
        """See Objective.logit_range."""
        return (-self.scale, (2.0 * self.hard_scale - 1.0) * self.scale)

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        if self.variant == "am":
            target = torch.where(t > self.margin, t - self.margin, t)
        else:
            target = torch.where(t > 0, torch.cos(angle(t) + self.margin), t)
        return cross_entropy(negatives, self.scale * target)


@dataclass(frozen=True)
class CurricularFace(ScaledObjective):
    """g = s z (T + z) where z > cos(theta + m); T follows the mean target cosine. Huang et al., 2020.

    arXiv 2004.00288, eq. 10 to 12. T starts at 0 and moves by T <- momentum * mean(t) + (1 - momentum) * T
    over the global batch, before it is used. The target has ArcFace's margin with its fallback.
    """

    needs_target: ClassVar[bool] = True
    margin: float = 0.5
    momentum: float = 0.01

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_angular_margin(self, "margin")
        require(
            0 < self.momentum <= 1, self, "momentum", "0 < momentum <= 1 (weight of the new batch)"
        )

    def initial_state(self) -> dict[str, float]:
        """See Objective.initial_state."""
        return {"ema": 0.0}

    def advance(self, state: State, t: Tensor, norm: Tensor) -> dict[str, float]:
        """See Objective.advance."""
        if t.numel() == 0:
            return dict(state)
        mean = float(t.double().mean())
        return {"ema": self.momentum * mean + (1.0 - self.momentum) * state["ema"]}

    def check_state(self, state: State) -> None:
        """See Objective.check_state: a mean of cosines."""
        check_statistic(self, state, "ema", -1.0, 1.0)

    def transform(self, t: Tensor, context: Context) -> HardNegatives:
        """See Objective.transform."""
        ema = context.state["ema"]
        threshold = add_angle(t, self.margin)
        return HardNegatives(threshold=threshold, value=(0.0, ema, 1.0), slope=(ema, 2.0))

    def logit_range(self, state: State) -> tuple[float, float]:
        """See Objective.logit_range."""
        return (-self.scale, (1.0 + abs(state["ema"])) * self.scale)

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        moved = torch.cos(angle(t) + self.margin)
        return cross_entropy(negatives, self.scale * with_fallback(t, moved, self.margin))

    def statistics(self, t: Tensor, norm: Tensor, context: Context) -> dict[str, Tensor]:
        """See Objective.statistics."""
        return {"ema": torch.tensor(context.state["ema"])}


@dataclass(frozen=True)
class NPCFace(ScaledObjective):
    """Negative and positive margins that collaborate. Zeng et al., 2020 (arXiv 2007.10172).

    Hard where z > cos(theta + mask_margin): g = s (hard_scale z + hard_shift) there. The positive margin is
    m0 + m1 * (mean cosine of the sample's hard negatives), on the angle, where t > 0. Defaults: the
    co-authors' code (FaceX-Zoo, NPCFace.py); the paper's own figures are unconfirmed.
    """

    needs_target: ClassVar[bool] = True
    mask_margin: float = 0.5
    m0: float = 0.4
    m1: float = 0.2
    hard_scale: float = 1.1
    hard_shift: float = 0.2

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_angular_margin(self, "mask_margin")
        check_angular_margin(self, "m0")
        check_angular_margin(self, "m1")
        require(self.m0 + self.m1 < math.pi / 2, self, "m1", "m0 + m1 < pi/2 (radians)")
        require(1 <= self.hard_scale < math.inf, self, "hard_scale", "a number >= 1")
        require(0 <= self.hard_shift < math.inf, self, "hard_shift", "a number >= 0")

    def transform(self, t: Tensor, context: Context) -> HardNegatives:
        """See Objective.transform."""
        h = self.hard_scale
        threshold = add_angle(t, self.mask_margin)
        return HardNegatives(threshold=threshold, value=(self.hard_shift, h, 0.0), slope=(h, 0.0))

    def logit_range(self, state: State) -> tuple[float, float]:
        """See Objective.logit_range."""
        low = min(-1.0, self.hard_shift - self.hard_scale)
        return (low * self.scale, max(1.0, self.hard_scale + self.hard_shift) * self.scale)

    def collaborative_margin(self, context: Context) -> Tensor:
        """[B] m0 + m1 * mean hard cosine, radians."""
        assert context.hard_sum is not None
        assert context.hard_count is not None
        return self.m0 + self.m1 * context.hard_sum / context.hard_count.clamp_min(1.0)

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        moved = torch.cos(angle(t) + self.collaborative_margin(context))
        return cross_entropy(negatives, self.scale * torch.where(t > 0, moved, t))

    def statistics(self, t: Tensor, norm: Tensor, context: Context) -> dict[str, Tensor]:
        """See Objective.statistics."""
        margin = self.collaborative_margin(context)
        return {"collaborative_margin": margin.sum() / max(1, margin.numel())}


@dataclass(frozen=True)
class CircleLoss(ScaledObjective):
    """Every similarity at a pace of its own, with class labels. Sun et al., 2020, eq. 6 (arXiv 2002.10857).

    With m the relaxation: g = s [z + m]_+ (z - m); the target's logit is s [1 + m - t]_+ (t - (1 - m)). The
    factors in brackets are weights, held constant in the derivative, as in the paper. A negative at or below
    -m has the logit 0.
    """

    scale: float = 256.0
    relaxation: float = 0.25

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(0 <= self.relaxation < 1, self, "relaxation", "0 <= relaxation < 1 (cosine)")

    def transform(self, t: Tensor, context: Context) -> HardNegatives:
        """See Objective.transform: all above -m."""
        m = self.relaxation
        return HardNegatives(
            threshold=torch.full_like(t, -m), value=(-m * m, 0.0, 1.0), slope=(m, 1.0), easy=0.0
        )

    def logit_range(self, state: State) -> tuple[float, float]:
        """See Objective.logit_range."""
        square = self.relaxation**2
        return (-self.scale * square, self.scale * (1.0 - square))

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        weight = (1.0 + self.relaxation - t).clamp_min(0.0).detach()
        return cross_entropy(negatives, self.scale * weight * (t - (1.0 - self.relaxation)))
