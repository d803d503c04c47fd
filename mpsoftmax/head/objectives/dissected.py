"""D-Softmax: the intra-class and the inter-class objective apart."""

from dataclasses import dataclass

from torch import Tensor

from mpsoftmax.head.objectives.base import (
    EMPTY,
    Context,
    ScaledObjective,
    SeparableObjective,
    require,
    softplus,
)


@dataclass(frozen=True)
class DSoftmax(SeparableObjective, ScaledObjective):
    """Dissected softmax: sp(s (d - t)) + sp(l). He et al., 2020 (arXiv 1908.01281).

    The intra-class part is log(1 + eps e^{-s t}) with eps = e^{s d}: half strength at t = d, the end point,
    whatever the negatives do. The inter-class part log(1 + e^l) ignores t. A cosine margin adds to d.
    """

    scale: float = 30.0
    end_point: float = 0.9
    margin: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        require(-1 <= self.end_point <= 1, self, "end_point", "-1 <= end_point <= 1 (cosine)")
        require(0 <= self.margin < 2, self, "margin", "0 <= margin < 2 (cosine)")

    def intra(self, t: Tensor, norm: Tensor, context: Context = EMPTY) -> Tensor:
        """sp(s (d + m - t)), [B]."""
        return softplus(self.scale * (self.end_point + self.margin - t))

    def inter(self, negatives: Tensor) -> Tensor:
        """sp(l), [B]: the zero logit enters once, over all shards."""
        return softplus(negatives)
