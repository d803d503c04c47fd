"""How well each image fits its own class, and which other class it is nearer to.

An image's own class is judged without the image: its cosine is that to the mean of the class's other images,
in which an image counts by the square of its own cosine to the others, so that a few wrong ones move the mean
little. Everything goes by blocks; beside the embeddings, memory holds one row a class.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsoftmax.evaluate.search import search

BLOCK_IMAGES = 2048
LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class Fit:
    """Of n images with a class.

    Attributes:
        own: float32 [n], cosine to the mean of the other images of its class; nan where there is none.
        other: float32 [n], cosine to the nearest mean of another class.
        nearest: int64 [n], that class.
        weights: float32 [n], how much each image counts in the mean of its class.
    """

    own: Tensor
    other: Tensor
    nearest: Tensor
    weights: Tensor

    @property
    def margin(self) -> Tensor:
        """How much nearer the other class is: other - own, float32 [n]."""
        return self.other - self.own


def deviations(values: Tensor, among: Tensor) -> Tensor:
    """How far values [n] lie above the median, in standard deviations as the median deviation gives them.

    Args:
        values: nan stays nan.
        among: bool [n], those that median and deviation are taken of; of none, all are 0.
    """
    known = values[among & ~values.isnan()]
    if not len(known):
        return torch.zeros_like(values)
    middle = known.median()
    spread = 1.4826 * (known - middle).abs().median()
    return (values - middle) / spread.clamp_min(1e-6)


def class_sums(unit: Tensor, labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Weighted sums of unit embeddings, float32 [num_classes, D]."""
    sums = unit.new_zeros(num_classes, unit.shape[1])
    for low in range(0, len(unit), BLOCK_IMAGES):
        some = slice(low, low + BLOCK_IMAGES)
        sums.index_add_(0, labels[some], unit[some] * weights[some, None])
    return sums


def cosine_to_others(unit: Tensor, labels: Tensor, weights: Tensor, sums: Tensor) -> Tensor:
    """Cosine of each image to the mean of its class without it; nan where the class has no other."""
    counts = torch.bincount(labels, minlength=len(sums))
    own = torch.empty(len(unit))
    for low in range(0, len(unit), BLOCK_IMAGES):
        some = slice(low, low + BLOCK_IMAGES)
        rest = sums[labels[some]] - unit[some] * weights[some, None]
        own[some] = (F.normalize(rest) * unit[some]).sum(1)
    own[counts[labels] < 2] = torch.nan
    return own


def fit(unit: Tensor, labels: Tensor, num_classes: int) -> Fit:
    """Own and nearest other class of every image.

    Args:
        unit: float32 [n, D] unit embeddings.
        labels: int64 [n], 0 .. num_classes-1.
        num_classes: Classes, at least two with images.
    """
    weights = torch.ones(len(unit))
    sums = class_sums(unit, labels, weights, num_classes)
    first = cosine_to_others(unit, labels, weights, sums)
    weights = first.nan_to_num(1.0).clamp_min(LEAST_WEIGHT).square()
    sums = class_sums(unit, labels, weights, num_classes)
    own = cosine_to_others(unit, labels, weights, sums)
    other, nearest = nearest_rows(unit, F.normalize(sums), labels)
    return Fit(own, other, nearest, weights)


def nearest_rows(unit: Tensor, rows: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest row of each image but one that is forbidden: cosines float32 [n] and rows int64 [n].

    Exact (`mpsoftmax.evaluate.search`). Rows of zeros are nobody's nearest.
    """
    kept = torch.nonzero(rows.norm(dim=1) > 0)[:, 0]
    found = search(unit, rows[kept], min(2, len(kept)), metric="inner")
    ids = kept[found.index]
    best, place = found.similarity.masked_fill(ids == forbidden[:, None], -torch.inf).max(1)
    return best.float(), ids.gather(1, place[:, None])[:, 0]
