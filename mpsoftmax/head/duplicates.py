"""Likely duplicate identities between baskets: classes whose means are each other's nearest.

Class means stay sharded; a chunk of them at a time is looked up on all ranks like a batch of samples. Within
one basket no two classes are the same identity, so the same search inside a basket shows how near two
*different* identities come: what it finds are decoys, and they say how far a cosine between baskets can be
trusted.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mpsoftmax.head.baskets import Miner
from mpsoftmax.head.centres import ClassMeans
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.kernels.problem import Problem, Selection

CHUNK_CLASSES = 1024  # of each rank, looked up at once


class Pair(NamedTuple):
    """Two classes of different baskets and the cosine of their means."""

    class_a: int
    class_b: int
    cosine: float


@dataclass(frozen=True)
class Search:
    """What a search found; the same on all ranks."""

    pairs: list[Pair]
    """Mutual nearest classes between baskets, nearest first, each once with class_a < class_b."""
    decoys: list[float]
    """Cosines of mutual nearest classes within a basket, descending."""


def likely_duplicates(
    head: ModelParallelSoftmax, means: ClassMeans, threshold: float = 0.5
) -> list[Pair]:
    """Pairs of classes of different baskets that are likely one identity, nearest first. Collective.

    Classes that were merged already count as one and are not listed again.

    Args:
        head: A head with baskets.
        means: From `head.class_means(by_label=True)`, with all data added.
        threshold: Least cosine of the two class means.

    Raises:
        ValueError: the head has no baskets.
    """
    return search(head, means, threshold).pairs


def search(head: ModelParallelSoftmax, means: ClassMeans, threshold: float) -> Search:
    """Mutual nearest classes at or above a cosine, between baskets and within them. Collective."""
    miner = head.miner
    if miner is None:
        raise ValueError(
            "baskets: None; allowed: Baskets(sizes, rule): duplicates lie between baskets"
        )
    classes, rows = group_means(head, means)
    lookup = Lookup(head, miner, classes, rows)
    between: dict[tuple[int, int], tuple[int, float]] = {}
    within: dict[int, tuple[int, float]] = {}
    for start in range(0, lookup.largest, CHUNK_CLASSES):
        lookup.add(start, threshold, between, within)
    pairs = [
        Pair(a, b, value)
        for (a, _), (b, value) in between.items()
        if a < b and between.get((b, lookup.home(a)), (-1, 0.0))[0] == a
    ]
    decoys = [v for a, (b, v) in within.items() if a < b and within.get(b, (-1, 0.0))[0] == a]
    return Search(sorted(pairs, key=lambda pair: -pair.cosine), sorted(decoys, reverse=True))


def group_means(head: ModelParallelSoftmax, means: ClassMeans) -> tuple[Tensor, Tensor]:
    """Local classes int64 [u] with samples, merged ones as one; their mean directions [u, D]. Collective."""
    sums, counts = means.sums.clone(), means.counts.clone()
    start, stop = means.start, means.stop
    pairs = head.merged.to(sums.device)
    for kept, parked in zip(pairs[:, 0].split(4096), pairs[:, 1].split(4096), strict=True):
        here = (parked >= start) & (parked < stop)
        moved = sums.new_zeros(len(parked), sums.shape[1] + 1)
        moved[here, :-1] = sums[parked[here] - start]
        moved[here, -1] = counts[parked[here] - start].to(sums.dtype)
        counts[parked[here] - start] = 0
        moved = head.comm.all_reduce_sum(moved)
        mine = (kept >= start) & (kept < stop)
        sums.index_add_(0, kept[mine] - start, moved[mine, :-1])
        counts.index_add_(0, kept[mine] - start, moved[mine, -1].to(torch.int64))
    classes = torch.nonzero(counts > 0)[:, 0]
    return classes, nn.functional.normalize(sums[classes], dim=1)


class Lookup:
    """Nearest class means of chunks of class means.

    Args:
        head: Whose classes.
        miner: Its baskets.
        classes: int64 [u] local classes, ascending.
        rows: [u, D] their directions.

    Attributes:
        largest: Most classes on one rank.
    """

    def __init__(
        self, head: ModelParallelSoftmax, miner: Miner, classes: Tensor, rows: Tensor
    ) -> None:
        self._comm, self._miner = head.comm, miner
        self._ids, self._rows = classes + head.local_range[0], rows
        self._members = miner.members(self._ids, head.merged_classes)
        self._home = 1 << miner.basket_of(self._ids)
        self.largest = int(self._comm.all_gather(classes.new_tensor([len(classes)])).max())

    def home(self, class_id: int) -> int:
        """The basket a class came in."""
        return int(self._miner.basket_of(torch.tensor([class_id], device=self._ids.device)))

    def add(
        self,
        start: int,
        threshold: float,
        between: dict[tuple[int, int], tuple[int, float]],
        within: dict[int, tuple[int, float]],
    ) -> None:
        """Look up the classes start..start+CHUNK_CLASSES-1 of every rank. Collective.

        Adds what is at or above the threshold: (class, other basket) -> (nearest class there, cosine), and
        class -> (nearest class of its own basket, cosine).
        """
        stop = start + CHUNK_CLASSES
        rows = self._comm.all_gather_rows(self._rows[start:stop])
        ids = self._comm.all_gather_rows(self._ids[start:stop])
        members = self._comm.all_gather_rows(self._members[start:stop])
        own = Selection(class_members=self._members, sample_members=members)
        self._note(ids, self._find(rows, ids, own), threshold, between)
        bit = 1 << self._miner.basket_of(ids)
        everything = (1 << len(self._miner.baskets.sizes)) - 1
        inside = Selection(class_members=self._home, sample_members=everything ^ bit)
        found: dict[tuple[int, int], tuple[int, float]] = {}
        self._note(ids, self._find(rows, ids, inside), threshold, found)
        within.update({one: nearest for (one, _), nearest in found.items()})

    def _find(self, rows: Tensor, ids: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Cosine and class id of the nearest in each basket: [n, G]."""
        place = torch.searchsorted(self._ids, ids)
        same = place.clamp_max(max(0, self._ids.numel() - 1))
        here = (
            self._ids[same] == ids if self._ids.numel() else torch.zeros_like(ids, dtype=torch.bool)
        )
        problem = Problem(
            features=rows,
            rows=self._rows,
            scale=1.0,
            target=torch.where(here, same, -1),
            shift=0.0,
            selection=selection,
        )
        values, classes = self._miner.nearest_by_basket(problem, self._ids, 1)
        return values[:, :, 0], classes[:, :, 0]

    def _note(
        self,
        ids: Tensor,
        found: tuple[Tensor, Tensor],
        threshold: float,
        out: dict[tuple[int, int], tuple[int, float]],
    ) -> None:
        values, classes = found
        samples, baskets = torch.nonzero(values >= threshold, as_tuple=True)
        listed = zip(
            ids[samples].tolist(),
            baskets.tolist(),
            classes[samples, baskets].tolist(),
            values[samples, baskets].tolist(),
            strict=True,
        )
        out.update({(one, basket): (other, value) for one, basket, other, value in listed})
