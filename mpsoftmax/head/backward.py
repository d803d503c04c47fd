"""From Phi's derivatives to the gradient of the raw features: collective (3), and the autograd binding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpsoftmax.head.exchange import Exchange, GlobalBatch, LocalBatch
from mpsoftmax.head.gradient import Contribution
from mpsoftmax.head.phases import Phases
from mpsoftmax.kernels.problem import NORM_FLOOR


@dataclass(frozen=True)
class Recorded:
    """One forward's results, kept until its backward."""

    contribution: Contribution
    local: LocalBatch
    batch: GlobalBatch
    target_cosine: Tensor
    """[n] over all ranks."""
    negatives: Tensor
    """float64 [m] log-sum-exp of the negatives' logits over all ranks."""
    by_norm: Tensor
    """[n]: dL/da with t and l held fixed."""
    scale_is_norm: bool
    """Whether the negatives were scaled by the feature norm."""
    version: int
    """Of the class table: the rows must not have moved since."""


def feature_gradient(recorded: Recorded, exchange: Exchange, phases: Phases) -> Tensor:
    """Gradient of the loss by this rank's raw features: [b, D] accumulate dtype. Collective.

    A zero feature has no direction: its gradient is zero.
    """
    part, batch, local = recorded.contribution, recorded.batch, recorded.local
    assert part.swept.pull is not None
    by_unit = part.swept.pull * part.negatives[:, None]
    if part.chosen is not None:
        by_unit = torch.zeros_like(part.unit).index_copy_(0, part.chosen, by_unit)
    if recorded.scale_is_norm:
        by_unit *= batch.norm[:, None]
    owned = part.targets.owned.to(by_unit.dtype)
    by_unit.addcmul_(part.targets.unit, (part.target * owned)[:, None])
    with phases("reduce"):
        by_unit = exchange.comm.reduce_scatter_sum(exchange.spread(by_unit, batch))
    num = local.norm.shape[0]
    by_unit = by_unit[:num]
    inverse = torch.where(local.norm > NORM_FLOOR, local.norm.reciprocal(), 0.0)
    along = torch.linalg.vecdot(by_unit, local.unit)
    by_feature = (by_unit - along[:, None] * local.unit) * inverse[:, None]
    radial = exchange.own(recorded.by_norm, batch)[:num]
    if recorded.scale_is_norm:
        by_target = exchange.own(part.target * recorded.target_cosine, batch)[:num]
        # Negatives' logits are a <x, w>: their pull along x, over a, is dl/da.
        radial = radial + (along - by_target) * inverse
    by_feature += radial[:, None] * local.unit
    return by_feature


class HeadFunction(torch.autograd.Function):
    """Binds a head's forward and backward to autograd; the class rows are no autograd inputs."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        features: Tensor,
        anchor: Tensor,
        labels: Tensor,
        forward: Callable[[Tensor, Tensor], tuple[Tensor, Recorded]],
        backward: Callable[[Recorded, Tensor], Tensor],
    ) -> Tensor:
        """Loss; `anchor` only makes it differentiable where the features are frozen."""
        loss, ctx.recorded = forward(features, labels)
        ctx.backward, ctx.dtype = backward, features.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        """The features' gradient, in their dtype."""
        gradient = ctx.backward(ctx.recorded, factor)
        return gradient.to(ctx.dtype), None, None, None, None
