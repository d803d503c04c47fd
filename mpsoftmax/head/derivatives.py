"""The objective on the reduced row statistics: mean loss and its derivatives in t, l and a.

Vectors of length B, the same on every rank, in float64 whatever the compute dtype: exact for next to nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mpsoftmax.head.objectives import Objective


class Reduced(NamedTuple):
    """Row statistics over all shards, each [n]."""

    total: Tensor
    """Sum of exp(g - maximum) over all negatives."""
    maximum: Tensor
    """The shift `total` refers to."""
    cosine: Tensor
    """Target cosine t."""


@dataclass(frozen=True)
class Derivatives:
    """Mean loss L over the valid samples, and its derivatives per sample, in the statistics' dtype."""

    loss: Tensor
    """Scalar."""
    by_target: Tensor
    """[n] dL/dt."""
    by_negatives: Tensor
    """[n] dL/dl."""
    by_norm: Tensor
    """[n] dL/da with t and l held fixed."""
    statistics: dict[str, Tensor]
    """Scalars for `last_stats`."""


def differentiate(objective: Objective, reduced: Reduced, norm: Tensor) -> Derivatives:
    """Phi and its derivatives by autograd.

    Args:
        objective: Phi.
        reduced: The row statistics.
        norm: [n] a.

    Returns:
        All zeros where n is 0.
    """
    total, maximum, cosine = reduced
    dtype, num = total.dtype, max(1, total.numel())
    with torch.inference_mode(False), torch.enable_grad():
        # Clones: under inference_mode the inputs could not take part in autograd.
        t, a = (value.double().clone().requires_grad_() for value in (cosine, norm))
        negatives = (maximum.double() + total.double().log()).clone().requires_grad_()
        loss = objective.loss(t, negatives, a).sum() / num
        gradients = torch.autograd.grad(
            loss, (t, negatives, a), allow_unused=True, materialize_grads=True
        )
    with torch.no_grad():
        some = torch.where(total > 0, negatives, torch.zeros_like(negatives))
        statistics = {
            "target_cosine": (t.sum() / num).to(dtype),
            "negatives_logsumexp": (some.sum() / num).to(dtype),
            "q": gradients[1].sum().to(dtype),
            "feature_norm": (a.sum() / num).to(dtype),
        }
    by_target, by_negatives, by_norm = (gradient.to(dtype) for gradient in gradients)
    return Derivatives(loss.detach().to(dtype), by_target, by_negatives, by_norm, statistics)
