"""The negatives axis: what a look-alike of another class does to a sample.

Most heads take every candidate at its word. A noise filter does not trust those that look too much like the
sample. What mining over several data sets leaves out is in baskets.py and mining.py; transforms that belong
to one objective are in objectives/hard_negatives.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import HardNegatives


class Negatives:
    """What every treatment of negatives offers."""

    def transform(self, like: Tensor) -> HardNegatives | None:
        """How some negatives' cosines become logits, for a batch of which `like` [B] is one column."""
        return None


@dataclass(frozen=True)
class AllNegatives(Negatives):
    """Every candidate of another class counts with its cosine."""


@dataclass(frozen=True)
class NoiseFilter(Negatives):
    """Negatives whose cosine exceeds the threshold get the logit 0 and no gradient.

    Partial FC's filter of likely wrong labels: An et al., 2022 (arXiv 2203.15565), insightface's
    `interclass_filtering_threshold`. A filtered class still adds e^0 = 1 to the sum; the
    target is never filtered.
    """

    threshold: float = 0.4

    def __post_init__(self) -> None:
        """Check the threshold."""
        if not -1 <= self.threshold <= 1:
            raise ValueError(
                f"NoiseFilter.threshold: {self.threshold!r}; allowed: -1 <= threshold <= 1 (cosine)"
            )

    def transform(self, like: Tensor) -> HardNegatives:
        """See Negatives.transform."""
        threshold = torch.full_like(like, self.threshold)
        return HardNegatives(threshold=threshold, value=(0.0, 0.0, 0.0), slope=(0.0, 0.0))


NEGATIVES: dict[str, type[Negatives]] = {"all": AllNegatives, "noise_filter": NoiseFilter}
