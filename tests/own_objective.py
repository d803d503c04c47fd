"""An objective of a user's own, as docs/how_to/own_loss.md has it: CosFace written anew."""

from dataclasses import dataclass

from torch import Tensor

from mpsoftmax.head.objectives import Context, ScaledObjective
from mpsoftmax.head.objectives.base import EMPTY, cross_entropy


@dataclass(frozen=True)
class MyMargin(ScaledObjective):
    """sp(l - s (t - margin))."""

    margin: float = 0.1

    def loss(self, t: Tensor, negatives: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """See Objective.loss."""
        return cross_entropy(negatives, self.scale * (t - self.margin))


class NotAnObjective:
    """Something else."""
