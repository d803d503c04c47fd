"""Classes that are likely one identity, within a data set and between data sets.

Two classes are listed where each is the other's nearest. Whether that is near enough is judged by what the
model makes of certain duplicates: every class cut into two halves. A pair whose means are as near as all but
a quarter of the halves, and nearer than the runner-up by some lead, is suggested for merging. The lead counts
towards the score too, as in mpsoftmax.head.duplicates, whose rule of mutual nearest classes this is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsoftmax.clean.centres import class_sums
from mpsoftmax.evaluate.search import search
from mpsoftmax.head.duplicates import Found, Nearest, Pair, mutual

QUANTILE, LISTED_QUANTILE = 0.25, 0.01
"""Chosen on Omniglot with planted duplicates (docs/cleaning.md)."""
LEAST_LEAD = 0.05
"""Least lead over the runner-up of a suggestion: what head.linking trusts at least."""
LEAST_HALVED = 4


@dataclass(frozen=True)
class Calibration:
    """Cosines of the halves' means of classes of at least four images.

    Attributes:
        merge: From which on two classes are suggested as one.
        listed: From which on they are listed.
        num_classes: How many classes this rests on.
    """

    merge: float
    listed: float
    num_classes: int

    def trusts(self, pair: Pair) -> bool:
        """Whether a pair is suggested as one identity."""
        return pair.cosine >= self.merge and pair.lead >= LEAST_LEAD


def calibrate(unit: Tensor, labels: Tensor, num_classes: int) -> Calibration:
    """What the means of two halves of one class are like.

    Raises:
        ValueError: no class has four images.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    order = torch.argsort(labels, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    even = (place % 2 == 0).float()
    halves = [
        F.normalize(class_sums(unit, labels, weight, num_classes)) for weight in (even, 1 - even)
    ]
    cosine = (halves[0] * halves[1]).sum(1)[counts >= LEAST_HALVED].sort().values
    if not len(cosine):
        raise ValueError(
            f"data: no class has {LEAST_HALVED} images, from which to learn what one identity looks like; "
            "allowed: --find without identity"
        )

    def quantile(share: float) -> float:
        return float(cosine[int(share * (len(cosine) - 1))])

    return Calibration(quantile(QUANTILE), quantile(LISTED_QUANTILE), len(cosine))


def likely_pairs(means: Tensor, sets: Sequence[int], threshold: float) -> list[Pair]:
    """Mutual nearest classes at or above a cosine, within each data set and between any two.

    Args:
        means: float32 [C, D] unit means of the classes of all sets one after the other; zeros: no images.
        sets: Number of classes of each set.
        threshold: Least cosine.

    Returns:
        Pairs with class_a < class_b, most suspicious first: by cosine plus lead.
    """
    ends = torch.tensor(sets).cumsum(0)
    home = torch.bucketize(torch.arange(len(means)), ends, right=True)
    found: Found = {}
    empty = means.norm(dim=1) == 0
    for number, stop in enumerate(ends.tolist()):
        start = stop - sets[number]
        values, ids = two_nearest(means, start, stop, empty)
        near = (values[:, 0] >= threshold) & ~empty
        for row in torch.nonzero(near)[:, 0].tolist():
            first, second = values[row].tolist()
            lead = first - max(second, -1.0)
            found[row, number] = Nearest(int(ids[row, 0]), first, lead)
    pairs = mutual(found, lambda one: int(home[one]))
    return sorted(pairs, key=lambda pair: (-(pair.cosine + pair.lead), pair))


def two_nearest(means: Tensor, start: int, stop: int, empty: Tensor) -> tuple[Tensor, Tensor]:
    """The two nearest of the classes start..stop-1 to every class, never itself: cosines [C, 2] and ids."""
    kept = start + torch.nonzero(~empty[start:stop])[:, 0]
    found = search(means, means[kept], min(3, len(kept)), metric="inner")
    ids = kept[found.index]
    itself = ids == torch.arange(len(means))[:, None]
    values = F.pad(found.similarity.masked_fill(itself, -torch.inf), (0, 1), value=-torch.inf)
    values, order = values.topk(2, dim=1)
    return values, F.pad(ids, (0, 1)).gather(1, order)
