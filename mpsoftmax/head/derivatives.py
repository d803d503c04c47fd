"""The objective on the reduced row statistics: mean loss and its derivatives in t, l and a.

Vectors of length n, the same on every rank, in float64 whatever the compute dtype: exact for next to nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mpsoftmax.head.objectives.base import Context, Objective, SeparableObjective


class Reduced(NamedTuple):
    """Row statistics over all shards, of n samples; m of them, as a rule all, met their negatives."""

    total: Tensor
    """[m] sum of exp(g - maximum) over all negatives."""
    maximum: Tensor
    """[m] the shift `total` refers to."""
    cosine: Tensor
    """[n] target cosine t."""
    chosen: Tensor | None
    """int64 [m] the samples that met their negatives; None: all."""

    @property
    def negatives(self) -> Tensor:
        """L: float64 [m] log-sum-exp of the negatives' logits, -inf where a sample has none."""
        return self.maximum.double() + self.total.double().log()


@dataclass(frozen=True)
class Derivatives:
    """Mean loss L over the valid samples, and its derivatives per sample, in the statistics' dtype."""

    loss: Tensor
    """Scalar."""
    by_target: Tensor
    """[n] dL/dt."""
    by_negatives: Tensor
    """[m] dL/dl."""
    by_norm: Tensor
    """[n] dL/da with t and l held fixed."""
    statistics: dict[str, Tensor]
    """Scalars for `last_stats`."""


def differentiate(
    objective: Objective, reduced: Reduced, norm: Tensor, context: Context
) -> Derivatives:
    """Phi and its derivatives by autograd.

    Args:
        objective: Phi; a SeparableObjective where only some samples met their negatives.
        reduced: The row statistics.
        norm: [n] a.
        context: What else the objective may know.

    Returns:
        All zeros where n is 0.
    """
    total, _, cosine, chosen = reduced
    dtype, num = total.dtype, max(1, cosine.numel())
    with torch.inference_mode(False), torch.enable_grad():
        # Clones: under inference_mode the inputs could not take part in autograd.
        t, a = (value.double().clone().requires_grad_() for value in (cosine, norm))
        negatives = reduced.negatives.clone().requires_grad_()
        if chosen is None:
            loss = objective.loss(t, negatives, a, context).sum() / num
        else:
            assert isinstance(objective, SeparableObjective)
            inter = objective.inter(negatives).sum() / max(1, chosen.numel())
            loss = objective.intra(t, a, context).sum() / num + inter
        gradients = torch.autograd.grad(
            loss, (t, negatives, a), allow_unused=True, materialize_grads=True
        )
    with torch.no_grad():
        some = torch.where(total > 0, negatives, torch.zeros_like(negatives))
        statistics = {
            "target_cosine": (t.sum() / num).to(dtype),
            "negatives_logsumexp": (some.sum() / max(1, some.numel())).to(dtype),
            "q": gradients[1].sum().to(dtype),
            "feature_norm": (a.sum() / num).to(dtype),
            **objective.statistics(t, a, context),
        }
    by_target, by_negatives, by_norm = (gradient.to(dtype) for gradient in gradients)
    return Derivatives(loss.detach().to(dtype), by_target, by_negatives, by_norm, statistics)
