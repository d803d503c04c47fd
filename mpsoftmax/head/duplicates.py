"""Likely duplicate identities between baskets: classes whose means are each other's nearest.

How near two means are says little: different identities can look alike. What tells is the lead, by how much
the nearest class of a basket is nearer than the runner-up of the same basket, which is certainly somebody
else; the smaller lead of the two directions counts. Within one basket no two classes are the same identity,
so the same search inside a basket finds decoys, and their leads show what chance alone reaches.

Class means stay sharded; a chunk of them at a time is looked up on all ranks like a batch of samples.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mpsoftmax.head.baskets import Miner
from mpsoftmax.head.centres import ClassMeans
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.sorted_ids import place_of
from mpsoftmax.kernels.problem import Problem, Selection

CHUNK_CLASSES = 1024  # of each rank, looked up at once


class Pair(NamedTuple):
    """Two classes of different baskets that are each other's nearest."""

    class_a: int
    class_b: int
    cosine: float
    """Of their means."""
    lead: float
    """By how much the runner-up of either's basket is farther, in cosine; the smaller of both directions."""


class Nearest(NamedTuple):
    """The class nearest to another one in some basket."""

    class_id: int
    cosine: float
    lead: float


@dataclass(frozen=True)
class Search:
    """What a search found; the same on all ranks."""

    pairs: list[Pair]
    """Mutual nearest classes between baskets, each once with class_a < class_b, largest lead first."""
    decoys: list[float]
    """Leads of mutual nearest classes within a basket, descending."""


Found = dict[tuple[int, int], Nearest]
"""(class, basket) -> the nearest class in that basket."""


def likely_duplicates(
    head: ModelParallelSoftmax, means: ClassMeans, threshold: float = 0.5, lead: float = 0.0
) -> list[Pair]:
    """Pairs of classes of different baskets that are likely one identity, largest lead first. Collective.

    Classes that were merged already count as one and are not listed again.

    Args:
        head: A head with baskets.
        means: From `head.class_means(by_label=True)`, with all data added.
        threshold: Least cosine of the two class means.
        lead: Least lead over the runners-up, in cosine.

    Raises:
        ValueError: the head has no baskets.
    """
    return [pair for pair in search(head, means, threshold).pairs if pair.lead >= lead]


def search(head: ModelParallelSoftmax, means: ClassMeans, threshold: float) -> Search:
    """Mutual nearest classes at or above a cosine, between baskets and within them. Collective."""
    miner = head.miner
    if miner is None:
        raise ValueError(
            "baskets: None; allowed: Baskets(sizes, rule): duplicates lie between baskets"
        )
    classes, rows = group_means(head, means)
    lookup = Lookup(head, miner, classes, rows)
    between: Found = {}
    within: Found = {}
    for start in range(0, lookup.largest, CHUNK_CLASSES):
        lookup.add(start, threshold, between, within)
    pairs, decoys = mutual(between, lookup.home), mutual(within, lookup.home)
    return Search(
        sorted(pairs, key=lambda pair: (-pair.lead, pair)),
        sorted((pair.lead for pair in decoys), reverse=True),
    )


def mutual(found: Found, home: Callable[[int], int]) -> list[Pair]:
    """Pairs of which either class is the other's nearest in the basket it came in."""
    pairs = []
    for (one, _), near in found.items():
        back = found.get((near.class_id, home(one)))
        if one < near.class_id and back is not None and back.class_id == one:
            pairs.append(Pair(one, near.class_id, near.cosine, min(near.lead, back.lead)))
    return pairs


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
        self._offsets = miner.baskets.offsets().tolist()
        self.largest = int(self._comm.all_gather(classes.new_tensor([len(classes)])).max())

    def home(self, class_id: int) -> int:
        """The basket a class came in."""
        return bisect_right(self._offsets, class_id) - 1

    def add(self, start: int, threshold: float, between: Found, within: Found) -> None:
        """Look up the classes start..start+CHUNK_CLASSES-1 of every rank. Collective.

        Adds what is at or above the threshold: nearest classes of other baskets, and of the own one.
        """
        stop = start + CHUNK_CLASSES
        rows = self._comm.all_gather_rows(self._rows[start:stop])
        ids = self._comm.all_gather_rows(self._ids[start:stop])
        members = self._comm.all_gather_rows(self._members[start:stop])
        own = Selection(class_members=self._members, sample_members=members)
        self._look(rows, ids, own, threshold, between)
        everything = (1 << len(self._miner.baskets.sizes)) - 1
        others = everything ^ (1 << self._miner.basket_of(ids))
        inside = Selection(class_members=self._home, sample_members=others)
        self._look(rows, ids, inside, threshold, within)

    def _look(
        self, rows: Tensor, ids: Tensor, selection: Selection, threshold: float, out: Found
    ) -> None:
        """Nearest and runner-up in each basket of what the selection calls strangers."""
        problem = Problem(
            features=rows,
            rows=self._rows,
            scale=1.0,
            target=place_of(ids, self._ids),
            shift=0.0,
            selection=selection,
        )
        values, classes = self._miner.nearest_by_basket(problem, self._ids, 2)
        samples, baskets = torch.nonzero(values[:, :, 0] >= threshold, as_tuple=True)
        first, second = values[samples, baskets].unbind(1)
        leads = first - second.clamp_min(-1.0)  # no runner-up: the farthest there could be
        listed = (ids[samples], baskets, classes[samples, baskets, 0], first, leads)
        for one, basket, other, cosine, lead in zip(
            *(part.tolist() for part in listed), strict=True
        ):
            out[one, basket] = Nearest(other, cosine, lead)
