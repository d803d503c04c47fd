"""Identity linking: classes of different baskets found to be one identity become one, while training goes on.

Every now and then, from exact class means (a pass over the data):

    1. mutual nearest classes between baskets are sought (duplicates.py), classes linked so far as one;
    2. a pair is trusted where it leads the runners-up by more than all but a few (`doubt`) of the decoys:
       mutual nearest classes *within* a basket, which are different identities for certain;
    3. a pair that was trusted `stable` times in a row is linked: merged in the class table, so that the
       images of both train one row and both baskets' classes are negatives of both;
    4. a linked class whose own images have moved away from the rest of its group is split off again.

A group holds at most one class of each basket. Every decision is an event that can be read and undone. The
method is ours, beyond Meng et al., 2022.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.head.centres import ClassMeans
from mpsoftmax.head.duplicates import Pair, search
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.merged import top


@dataclass(frozen=True)
class Event:
    """One decision."""

    kind: str
    """"link", "split", or "conflict" (not linked: the group would hold two classes of one basket)."""
    class_a: int
    """The class whose row stays."""
    class_b: int
    cosine: float
    """Of the class means; of a split class, with its group's other images."""
    lead: float
    """Of the pair over the runners-up; 0 for a split class."""
    trusted_lead: float
    """The least lead trusted at that time."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class IdentityLinker:
    """Links classes of different baskets that turn out to be one identity.

    Args:
        head: A head with baskets and learned rows.
        threshold: Least cosine of class means.
        doubt: Share of the decoys that may lead by as much as a trusted pair.
        lead: Least lead that is ever trusted, in cosine.
        stable: Checks in a row that must trust a pair.
        release: A linked class is split off where the cosine between the mean of its images and that of the
            rest of its group falls below this.

    Raises:
        ValueError: the head has no baskets or no learned rows, or a value is out of range.
    """

    def __init__(
        self,
        head: ModelParallelSoftmax,
        *,
        threshold: float = 0.5,
        doubt: float = 0.1,
        lead: float = 0.05,
        stable: int = 2,
        release: float = 0.3,
    ) -> None:
        for name, value in (("threshold", threshold), ("release", release)):
            if not -1 <= value <= 1:
                raise ValueError(f"linking.{name}: {value!r}; allowed: -1 to 1 (cosine)")
        if not 0 <= doubt < 1:
            raise ValueError(f"linking.doubt: {doubt!r}; allowed: 0 <= doubt < 1")
        if not 0 <= lead <= 2:
            raise ValueError(f"linking.lead: {lead!r}; allowed: 0 to 2 (cosine)")
        if isinstance(stable, bool) or not isinstance(stable, int) or stable < 1:
            raise ValueError(f"linking.stable: {stable!r}; allowed: a whole number >= 1")
        if head.miner is None:
            raise ValueError("linking: the head has no baskets; allowed: Baskets(sizes, rule)")
        if not head.weights.learned:
            raise ValueError(f"linking: weights {head.weights!r}; allowed: learned rows")
        self._head, self._miner = head, head.miner
        self.threshold, self.doubt, self.lead = threshold, doubt, lead
        self.stable, self.release = stable, release
        self._seen: dict[tuple[int, int], int] = {}

    def update(self, means: ClassMeans) -> list[Event]:
        """Split, search, and link. Collective; the same on all ranks.

        Args:
            means: From `head.class_means(by_label=True)`, with all data added.

        Returns:
            What was decided, in order.
        """
        events = self._split(means)
        found = search(self._head, means, self.threshold)
        trusted = trusted_lead(found.decoys, self.doubt, self.lead)
        pairs = [pair for pair in found.pairs if pair.lead >= trusted]
        self._seen = {pair[:2]: self._seen.get(pair[:2], 0) + 1 for pair in pairs}
        ready = [pair for pair in pairs if self._seen[pair[:2]] >= self.stable]
        return events + self._link(ready, trusted)

    def _link(self, pairs: list[Pair], trusted: float) -> list[Event]:
        """Merge the pairs, largest lead first, as long as no group gets two classes of a basket."""
        ids = torch.unique(
            torch.tensor([pair[:2] for pair in pairs], dtype=torch.int64).reshape(-1)
        )
        device = self._head.merged_classes.parked().device
        bits = self._miner.members(ids.to(device), self._head.merged_classes).tolist()
        members = dict(zip(ids.tolist(), bits, strict=True))
        above: dict[int, int] = {}
        events, merges = [], []
        for a, b, cosine, lead in pairs:
            one, other = top(above, a), top(above, b)
            conflict = one == other or members[one] & members[other]
            if not conflict:
                merges.append((one, other))
                members[one] |= members[other]
                above[other] = one
            if one != other:
                kind = "conflict" if conflict else "link"
                events.append(Event(kind, one, other, cosine, lead, trusted))
        self._head.merge_classes(merges)
        return events

    def _split(self, means: ClassMeans) -> list[Event]:
        """Split off linked classes whose images left their group."""
        pairs = self._head.merged
        if not len(pairs):
            return []
        cosines = agreement(self._head, means).tolist()
        leaving = [
            (kept, parked, cosine)
            for (kept, parked), cosine in zip(pairs.tolist(), cosines, strict=True)
            if cosine < self.release
        ]
        self._head.split_classes([parked for _, parked, _ in leaving])
        return [Event("split", kept, parked, cosine, 0.0, 0.0) for kept, parked, cosine in leaving]

    def state(self) -> list[list[int]]:
        """What a resumed run needs beside the head's own state: [class, class, checks in a row]."""
        return [[a, b, count] for (a, b), count in sorted(self._seen.items())]

    def load_state(self, state: list[list[int]]) -> None:
        """What `state` gave."""
        self._seen = {(a, b): count for a, b, count in state}


def trusted_lead(decoys: list[float], doubt: float, least: float) -> float:
    """The lead that a share `doubt` of the decoys reaches, and no less than `least`.

    `decoys` are leads in descending order.
    """
    reached = int(doubt * len(decoys))
    return max(least, decoys[reached]) if reached < len(decoys) else least


def agreement(head: ModelParallelSoftmax, means: ClassMeans) -> Tensor:
    """[M] cosine between each merged class's own mean and that of the rest of its group. Collective.

    1 where either has no images.
    """
    kept, parked = head.merged.to(means.sums.device).unbind(1)
    groups, place = torch.unique(kept, return_inverse=True)
    own = label_sums(head, means, parked)
    total = label_sums(head, means, groups).index_add(0, place, own)
    rest = total[place] - own
    cosine = nn.functional.cosine_similarity(own, rest, dim=1)
    empty = (own == 0).all(1) | (rest.abs() < 1e-6).all(1)
    return cosine.masked_fill(empty, 1.0)


def label_sums(head: ModelParallelSoftmax, means: ClassMeans, classes: Tensor) -> Tensor:
    """Feature sums [n, D] of any classes, on every rank. Collective."""
    mine = (classes >= means.start) & (classes < means.stop)
    sums = means.sums.new_zeros(len(classes), means.sums.shape[1])
    sums[mine] = means.sums[classes[mine] - means.start]
    return head.comm.all_reduce_sum(sums)
