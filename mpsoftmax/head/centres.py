"""Class means: how class centres follow their features, and passes over the data."""

from typing import NamedTuple

import torch
from torch import Tensor

from mpsoftmax.head.exchange import Exchange
from mpsoftmax.head.merged import MergedClasses
from mpsoftmax.head.weights import ClassCentres


class ClassSums(NamedTuple):
    """Features of one batch summed by class."""

    classes: Tensor
    """int64 [u] local classes, ascending."""
    sums: Tensor
    """[u, D]."""
    counts: Tensor
    """[u], in the sums' dtype."""
    inverse: Tensor
    """int64 [m]: for each sample that lies here, its place in `classes`."""

    @property
    def means(self) -> Tensor:
        """[u, D]."""
        return self.sums / self.counts[:, None]


def class_sums(features: Tensor, own: Tensor) -> ClassSums:
    """Sum features [n, D] by local class `own` [n]; samples with -1 belong to other shards."""
    here = own >= 0
    classes, inverse, counts = torch.unique(own[here], return_inverse=True, return_counts=True)
    sums = features.new_zeros(classes.numel(), features.shape[1])
    sums.index_add_(0, inverse, features[here])
    return ClassSums(classes, sums, counts.to(features.dtype), inverse)


def angle_to_means(features: Tensor, labels: Tensor, cosine: Tensor) -> Tensor:
    """Mean angle in radians between a class's row and the mean of its features in a batch.

    Where a class has few samples this is more than the angle to its centre: that of one sample is its own.
    Needs no row: <w, sum f> is the sum of |f| times the target cosine.

    Args:
        features: [n, D] what class centres average, of all ranks.
        labels: int64 [n].
        cosine: [n] target cosines.

    Returns:
        Scalar, the mean over the batch's classes; 0 where n is 0.
    """
    classes, inverse = torch.unique(labels, return_inverse=True)
    sums = features.new_zeros(classes.numel(), features.shape[1]).index_add_(0, inverse, features)
    along = features.new_zeros(classes.numel())
    along.index_add_(0, inverse, features.norm(dim=1) * cosine.to(features))
    # A mean of zero has no direction: right angle.
    of_class = along / sums.norm(dim=1).clamp_min(torch.finfo(features.dtype).tiny)
    return torch.arccos(of_class.clamp(-1.0, 1.0)).sum() / max(1, classes.numel())


def moved_centres(rule: ClassCentres, centres: Tensor, seen: Tensor, batch: ClassSums) -> Tensor:
    """Centres [u, D] after one step.

    Args:
        rule: How they follow.
        centres: [u, D] before.
        seen: bool [u]: whether the class had samples before; where not, the centre is the batch's mean.
        batch: The step's features by class.
    """
    means = batch.means.to(centres)
    if rule.rule == "ema":
        moved = (1.0 - rule.alpha) * centres + rule.alpha * means
    elif rule.rule == "center_loss":
        counts = batch.counts.to(centres)[:, None]
        moved = centres - rule.alpha * (counts * centres - batch.sums.to(centres)) / (1.0 + counts)
    else:
        moved = centres
    return torch.where(seen[:, None], moved, means)


class ClassMeans:
    """Exact class means by a pass over the data: every rank brings its share of it.

    Made by `head.class_means()`. The owner of a class sums its features, in the table's dtype.

    Args:
        exchange: Gathers features and labels; without a batch capacity.
        local: (start, stop) class ids of this rank.
        like: Any tensor of the dtype and device of the rows.
        raw: Average features as they are, not their directions.
        merged: Which classes count as one; None: none.

    Attributes:
        sums: [num_local, D].
        counts: int64 [num_local] samples of each class of this rank.
    """

    def __init__(
        self,
        exchange: Exchange,
        local: tuple[int, int],
        like: Tensor,
        *,
        raw: bool,
        merged: MergedClasses | None,
    ) -> None:
        self._exchange, self._raw, self._merged = exchange, raw, merged
        self.start, self.stop = local
        num = self.stop - self.start
        self.sums = like.new_zeros(num, exchange.dim)
        self.counts = torch.zeros(num, dtype=torch.int64, device=like.device)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count this rank's features [b, D] with labels int64 [b]; -1 ignores a sample. Collective.

        Raises:
            ValueError: as the head's forward.
        """
        _, batch = self._exchange.gather(features, labels)
        classes = batch.labels if self._merged is None else self._merged.canonical(batch.labels)
        owned = (classes >= self.start) & (classes < self.stop)
        own = torch.where(owned, classes - self.start, -1)
        unit = batch.unit.to(self.sums.dtype)
        values = unit * batch.norm.to(unit)[:, None] if self._raw else unit
        found = class_sums(values, own)
        self.sums[found.classes] += found.sums
        self.counts[found.classes] += found.counts.to(torch.int64)

    def means(self) -> tuple[Tensor, Tensor]:
        """Local classes int64 [u] that have samples, and their means [u, D]."""
        here = torch.nonzero(self.counts > 0)[:, 0]
        return here, self.sums[here] / self.counts[here, None].to(self.sums.dtype)
