"""Baskets: several data sets in one table, and who is a negative of whom.

The classes of all baskets lie side by side in one table; a class knows its basket by its id. On the sharded
table a rule is a predicate inside the sweep (Parallel BBS): no logit leaves its rank. Rules that compare
classes of one basket across shards look their cosines up before the sweep and exchange (cosine, class id)
pairs, 8 bytes each: [B, baskets, k] for R3 and R4, [B, num] more for R5. A class is dropped by its id, never
by equality of cosines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.head.merged import MergedClasses
from mpsoftmax.head.mining import AllDistinct, Hardest, Overlap, OwnBasket, Rule, rule_named
from mpsoftmax.head.sorted_ids import place_of
from mpsoftmax.kernels.problem import Pairs, Problem, Selection
from mpsoftmax.kernels.select import Kernel

MAX_BASKETS = 62  # member bits of an int64
NO_CLASS = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class Baskets:
    """Several data sets with separate label spaces, trained as one. Meng et al., 2022 (arXiv 2201.09308).

    Attributes:
        sizes: Classes of each data set; basket b holds the ids after those of the baskets before it.
        rule: Which classes of other baskets are a sample's negatives: a rule of `mpsoftmax.head.mining`, or
            the name of one.
        warmup: Steps at the start with negatives of the own basket only: cosines mean little then.
        margins: A margin for each basket's samples in place of the objective's; None keeps the objective's.
    """

    sizes: Sequence[int]
    rule: Rule | str = "top_one"
    warmup: int = 0
    margins: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        sizes = tuple(int(size) for size in self.sizes)
        if sizes != tuple(self.sizes):
            raise ValueError(f"baskets.sizes: {list(self.sizes)}; allowed: whole numbers")
        object.__setattr__(self, "sizes", sizes)
        if isinstance(self.rule, str):
            object.__setattr__(self, "rule", rule_named(self.rule))
        if not sizes or min(sizes) < 1 or len(sizes) > MAX_BASKETS:
            raise ValueError(
                f"baskets.sizes: {list(sizes)}; allowed: 1 to {MAX_BASKETS} data sets of at least one class"
            )
        if not isinstance(self.rule, Rule):
            raise ValueError(f"baskets.rule: {self.rule!r}; allowed: a rule, or its name")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"baskets.warmup: {self.warmup!r}; allowed: steps, at least 0")
        if self.warmup and isinstance(self.rule, AllDistinct):
            raise ValueError(
                f"baskets.warmup: {self.warmup} with rule all_distinct; allowed: 0: nothing is mined"
            )
        if self.margins is not None:
            object.__setattr__(self, "margins", tuple(self.margins))
            if len(self.margins) != len(sizes):
                raise ValueError(
                    f"baskets.margins: {len(self.margins)} of them; allowed: {len(sizes)}, one a basket"
                )

    def offsets(self) -> np.ndarray:
        """First class id of each basket, and the number of classes: int64 [baskets + 1]."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def rule_at(self, step: int) -> Rule:
        """The rule that applies in a step."""
        assert isinstance(self.rule, Rule)
        if step < self.warmup:
            return OwnBasket()
        return self.rule


class Miner:
    """Turns a rule into what one shard's sweep leaves out.

    Args:
        baskets: The description.
        comm: The ranks.
        kernel: Looks up nearest classes.
        local: (start, stop) class ids of this rank.
        device: Where the rows live.
    """

    def __init__(
        self,
        baskets: Baskets,
        comm: Comm,
        kernel: Kernel,
        local: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.baskets, self._comm, self._kernel = baskets, comm, kernel
        self._offsets = torch.from_numpy(baskets.offsets()).to(device)
        self._local = torch.arange(*local, device=device)
        self._cached: tuple[Tensor, Tensor] | None = None
        self._partners = known_pairs(baskets.rule, device)

    def basket_of(self, classes: Tensor) -> Tensor:
        """int64: basket of each class id."""
        return torch.searchsorted(self._offsets, classes, right=True) - 1

    def check_groups(self, pairs: Tensor) -> None:
        """Raise ValueError where merging (kept, parked) puts two classes of one basket together."""
        kept, parked = pairs.to(self._offsets.device).unbind(1)
        groups = torch.cat([torch.unique(kept), kept])
        classes = torch.cat([torch.unique(kept), parked])
        places = torch.stack([groups, self.basket_of(classes.contiguous())], 1)
        distinct, counts = torch.unique(places, dim=0, return_counts=True)
        if bool((counts > 1).any()):
            group, basket = distinct[counts > 1][0].tolist()
            raise ValueError(
                f"pairs: the classes merged with {group} include two of basket {basket}; allowed: one of "
                "each basket: within one, no two classes are the same identity"
            )

    def local_members(self, merged: MergedClasses) -> Tensor:
        """`members` of all classes of this rank, computed once for each set of merged classes."""
        if self._cached is None or self._cached[0] is not merged.pairs:
            self._cached = (merged.pairs, self.members(self._local, merged))
        return self._cached[1]

    def members(self, classes: Tensor, merged: MergedClasses) -> Tensor:
        """int64: bit b is set where the class, or one merged into it, belongs to basket b."""
        bits = torch.bitwise_left_shift(torch.ones_like(classes), self.basket_of(classes))
        kept, parked = merged.kept(), merged.parked()
        for basket in range(len(self.baskets.sizes) if len(kept) else 0):
            also = kept[self.basket_of(parked) == basket]
            bits |= torch.isin(classes, also).to(torch.int64) << basket
        return bits

    def select(
        self,
        problem: Problem,
        *,
        labels: Tensor,
        index: Tensor | None,
        cosine: Tensor,
        step: int,
        merged: MergedClasses,
    ) -> Problem:
        """The problem with what the rule leaves out. Collective where the rule looks classes up.

        Args:
            problem: The shard's sweep, without a selection.
            labels: int64 [B] own classes, merged ones by the class they are merged into.
            index: int64 local candidate classes, sorted; None: all.
            cosine: [B] target cosines where the rule needs them.
            step: Steps taken so far.
            merged: Classes that share a row.
        """
        rule = self.baskets.rule_at(step)
        if rule.all_distinct:
            return problem
        ids = self._local if index is None else self._local[index]
        members = self.local_members(merged)
        selection = Selection(
            class_members=members if index is None else members[index],
            sample_members=self.members(labels, merged),
        )
        if rule.own_only:
            nothing = labels.new_empty(0)
            return replace(problem, selection=replace(selection, kept=Pairs(nothing, nothing)))
        posed = replace(problem, selection=selection)
        dropped = self._dropped(rule, posed, labels, ids, merged)
        selection = replace(selection, limit=rule.limit(cosine), dropped=dropped)
        problem = replace(problem, selection=selection)
        if not isinstance(rule, Hardest):
            return problem
        values, found = self._nearest(problem, [(0, problem.num_classes)], rule.num, ids)
        kept = self._pairs_here(found, values > -torch.inf, ids)
        return replace(problem, selection=replace(selection, kept=kept))

    def _dropped(
        self, rule: Rule, problem: Problem, labels: Tensor, ids: Tensor, merged: MergedClasses
    ) -> Pairs | None:
        """Pairs of other baskets that are left out by class id."""
        base = rule.after if isinstance(rule, Hardest) else rule
        if isinstance(base, Overlap):
            return self._known(labels, ids, merged)
        if not base.num_dropped:
            return None
        values, found = self.nearest_by_basket(problem, ids, base.num_dropped)
        return self._pairs_here(found, values >= base.drop_above, ids)

    def nearest_by_basket(self, problem: Problem, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest classes of each basket to each sample, over all shards. Collective.

        Args:
            problem: This shard's rows and the samples; its selection says who is a stranger to whom.
            ids: int64 class ids of the rows, ascending.
            k: At least 1.

        Returns:
            Cosines (float32, -inf where there are fewer) and class ids (-1 there), [B, baskets, k].
        """
        bounds = torch.searchsorted(ids, self._offsets).tolist()
        return self._nearest(problem, list(pairwise(bounds)), k, ids)

    def _nearest(
        self, problem: Problem, groups: list[tuple[int, int]], k: int, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The k nearest over all shards: cosines (float32) and class ids, [B, G, k]."""
        values, places = self._kernel.nearest(problem, groups, k)
        found = ids[places.clamp_min(0)] if ids.numel() else places
        packed = pack(values, torch.where(places >= 0, found, -1))
        if k == 1:
            return unpack(self._comm.all_reduce_max(packed))
        gathered = self._comm.all_gather(packed)
        joined = gathered.movedim(0, -1).flatten(-2)
        return unpack(joined.topk(k, dim=-1).values)

    def _pairs_here(self, classes: Tensor, wanted: Tensor, ids: Tensor) -> Pairs:
        """Those of the classes [B, G, k] that are candidates of this shard, with their samples."""
        samples = torch.arange(classes.shape[0], device=classes.device)
        samples = samples.view(-1, 1, 1).expand_as(classes)[wanted]
        classes = classes[wanted]
        places = place_of(classes, ids)
        return Pairs(places[places >= 0], samples[places >= 0])

    def _known(self, labels: Tensor, ids: Tensor, merged: MergedClasses) -> Pairs:
        """Known duplicates of each sample's class, or one merged with it, among this shard's candidates."""
        one, order = torch.sort(merged.canonical(self._partners[0]))
        other = merged.canonical(self._partners[1][order])
        low, high = torch.searchsorted(one, labels), torch.searchsorted(one, labels, right=True)
        count = high - low
        samples = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), count)
        first = torch.repeat_interleave(low - (count.cumsum(0) - count), count)
        classes = other[first + torch.arange(len(samples), device=labels.device)]
        as_found = classes[:, None, None]
        pairs = self._pairs_here(as_found, torch.ones_like(as_found, dtype=torch.bool), ids)
        return Pairs(pairs.classes, samples[pairs.samples])


def known_pairs(rule: Rule | str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both directions of the known duplicates, sorted by the first: int64 [P] twice."""
    assert isinstance(rule, Rule)
    base = rule.after if isinstance(rule, Hardest) else rule
    listed = base.pairs if isinstance(base, Overlap) else ()
    pairs = torch.tensor(listed, dtype=torch.int64, device=device).reshape(-1, 2)
    pairs = torch.unique(torch.cat([pairs, pairs.flip(1)]), dim=0)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def pack(values: Tensor, classes: Tensor) -> Tensor:
    """(cosine, class id) as int64 that sorts by float32 cosine, ties to the lowest id; -1 is the least."""
    bits = values.to(torch.float32).contiguous().view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    packed = (ordered << 32) | (0xFFFFFFFF - classes.clamp_min(0))
    return torch.where(classes >= 0, packed, NO_CLASS)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """What `pack` took: float32 cosines (-inf where there is none) and class ids (-1 there)."""
    nothing = packed == NO_CLASS
    ordered = (packed >> 32).to(torch.int32)
    values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    classes = 0xFFFFFFFF - (packed & 0xFFFFFFFF)
    return values.masked_fill(nothing, -torch.inf), classes.masked_fill(nothing, -1)
