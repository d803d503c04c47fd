"""The forward pass of one shard: from the gathered batch to the derivatives of Phi.

In this order:

own rows and target cosines     targets.py        [reduced at once where something depends on them]
candidates                      candidates.py
who is a negative of whom       baskets.py        [a rule may look classes up]
sweep                           kernels/
collective (2)                  reduction.py      beside the sweep's last product
Phi and its derivatives         derivatives.py
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.head.baskets import Miner
from mpsoftmax.head.candidates import Candidates
from mpsoftmax.head.centres import angle_to_means, class_sums
from mpsoftmax.head.class_table import ClassTable
from mpsoftmax.head.derivatives import Derivatives, Reduced, differentiate
from mpsoftmax.head.exchange import GlobalBatch
from mpsoftmax.head.merged import MergedClasses
from mpsoftmax.head.negatives import Negatives
from mpsoftmax.head.objectives.base import Context, Objective
from mpsoftmax.head.phases import Phases
from mpsoftmax.head.reduction import Reduction
from mpsoftmax.head.running_state import RunningState
from mpsoftmax.head.shift import static_shift
from mpsoftmax.head.sorted_ids import place_of
from mpsoftmax.head.targets import Targets, targets_of
from mpsoftmax.head.weights import ClassCentres, Weights
from mpsoftmax.kernels.problem import Counts, Problem, Swept
from mpsoftmax.kernels.select import Kernel


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a head is made of."""

    objective: Objective
    candidates: Candidates
    negatives: Negatives
    weights: Weights
    miner: Miner | None
    merged: MergedClasses
    running: RunningState
    table: ClassTable
    comm: Comm
    phases: Phases
    kernel: Kernel
    compute_dtype: torch.dtype
    seed: int

    @property
    def needs_target(self) -> bool:
        """Whether target cosines are reduced before the sweep."""
        if self.objective.needs_target or self.miner is None:
            return self.objective.needs_target
        return self.miner.baskets.rule_at(self.table.num_steps).needs_target


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What one forward pass found."""

    derivatives: Derivatives
    reduced: Reduced
    swept: Swept
    targets: Targets
    taken: "Taken"


@dataclass(frozen=True)
class Taken:
    """Who took part."""

    index: Tensor | None
    """int64 local candidate classes, sorted; None: all."""
    absent: Tensor | None
    """Bool [candidates]: those that are nobody's negatives; None: no such class."""
    chosen: Tensor | None
    """int64 [m] the samples that met their negatives; None: all."""


@dataclass(frozen=True)
class Room:
    """What a training sweep may keep."""

    keep_bytes: int
    spare: Tensor | None


def run(parts: Parts, batch: GlobalBatch, *, num_draws: int, training: Room | None) -> Forward:
    """One forward pass. Collective.

    Args:
        parts: The head.
        batch: The valid samples of all ranks.
        num_draws: Training forwards since the last step: each draws its own candidates.
        training: None in evaluation: nothing is kept and no statistics advance.
    """
    labels = parts.merged.canonical(batch.labels)
    own = local_classes(parts.table, labels)
    index = draw(parts, own, num_draws)
    if not parts.table.resident:
        parts.table.hold(needed_rows(parts.table, own, index))
    targets = find_targets(parts, batch, own)
    cosine = torch.zeros_like(targets.cosine)
    if parts.needs_target:
        with parts.phases("reduce"):
            cosine = parts.comm.all_reduce_sum(targets.cosine.clone())
    state = parts.running.committed
    if training is not None:
        state = parts.running.advanced(cosine, batch.norm)
    basket = None if parts.miner is None else parts.miner.basket_of(batch.labels)
    context = Context(step=parts.table.num_steps, state=state, basket=basket)
    chosen = choose(parts, batch, num_draws)
    problem = pose(parts, batch, labels, own, index, chosen, cosine, context)
    reduction = Reduction(parts.comm, None if parts.needs_target else targets.cosine, chosen)
    swept = sweep(parts, problem, training, reduction)
    with parts.phases("reduce"):
        reduced, counts = reduction.finish()
    if parts.needs_target:
        reduced = reduced._replace(cosine=cosine)
    if chosen is None:
        context = with_counts(context, counts)
    derivatives = differentiate(parts.objective, reduced, batch.norm, context)
    derivatives.statistics.update(statistics(parts, counts, basket, chosen))
    if isinstance(parts.weights, ClassCentres):
        averaged = centre_features(parts.weights, batch.unit.to(batch.norm.dtype), batch.norm)
        angle = angle_to_means(averaged, labels, reduced.cosine)
        derivatives.statistics["centre_angle_rad"] = angle
    return Forward(
        derivatives=derivatives,
        reduced=reduced,
        swept=swept,
        targets=targets,
        taken=Taken(index, problem.absent, chosen),
    )


def local_classes(table: ClassTable, labels: Tensor) -> Tensor:
    """int64 [n]: local class of each label, -1 where another shard owns it."""
    owned = (labels >= table.start) & (labels < table.stop)
    return torch.where(owned, labels - table.start, -1)


def draw(parts: Parts, own: Tensor, num_draws: int) -> Tensor | None:
    """This shard's candidate classes; None: all."""
    if not parts.candidates.samples_classes:
        return None
    positives = np.unique(own[own >= 0].cpu().numpy())
    key = (parts.seed, parts.comm.rank, parts.table.num_steps, num_draws)
    drawn = parts.candidates.draw(parts.table.num_local, positives, key)
    return None if drawn is None else torch.from_numpy(drawn).to(own.device)


def needed_rows(table: ClassTable, own: Tensor, index: Tensor | None) -> Tensor:
    """Local rows, ascending, that a step reads and may move: its candidates' and the samples' own."""
    classes = torch.unique(own[own >= 0])
    if index is not None:
        classes = torch.unique(torch.cat([index, classes]))
    rows = table.rows_of(classes)
    assert rows is not None
    return rows


def read_ahead(parts: Parts, labels: Tensor, *, num_draws: int) -> None:
    """Begin to read what `run` will need for a batch of these labels int64 [n] of all ranks."""
    own = local_classes(parts.table, parts.merged.canonical(labels))
    index = draw(parts, own, num_draws)
    parts.table.read_ahead(needed_rows(parts.table, own, index))


def choose(parts: Parts, batch: GlobalBatch, num_draws: int) -> Tensor | None:
    """The samples that meet their negatives, the same on all ranks; None: all."""
    # No rank in the key, and five numbers, unlike the keys of `draw`.
    key = (parts.seed, parts.table.num_steps, num_draws, 0, 66)
    chosen = parts.candidates.choose(batch.labels.numel(), key)
    return None if chosen is None else torch.from_numpy(chosen).to(batch.labels.device)


def find_targets(parts: Parts, batch: GlobalBatch, own: Tensor) -> Targets:
    """Own rows and cosines. A class centre without samples before is the mean of this batch's."""
    table, unit = parts.table, batch.unit.to(batch.norm.dtype)
    shape = (own.numel(), table.num_centres, table.dim)
    rows = table.empty(*shape)
    owned = own >= 0
    rows[owned] = table.current_rows(table.rows_of(own[owned])).view(-1, *shape[1:])
    if isinstance(parts.weights, ClassCentres):
        sums = class_sums(centre_features(parts.weights, unit, batch.norm), own)
        first = table.row_step[own[owned]] == 0
        fresh = sums.means[sums.inverse].to(rows)[:, None]
        rows[owned] = torch.where(first[:, None, None], fresh, rows[owned])
    return targets_of(unit, own, rows)


def centre_features(weights: ClassCentres, unit: Tensor, norm: Tensor) -> Tensor:
    """[n, D] what class centres average."""
    return unit * norm[:, None] if weights.features == "raw" else unit


def pose(
    parts: Parts,
    batch: GlobalBatch,
    labels: Tensor,
    own: Tensor,
    index: Tensor | None,
    chosen: Tensor | None,
    cosine: Tensor,
    context: Context,
) -> Problem:
    """The shard's sweep. Collective where a mining rule looks classes up."""
    hard = parts.objective.transform(cosine, context) or parts.negatives.transform(cosine)
    features, norm = batch.unit, batch.norm
    if chosen is not None:
        features, norm, labels, own, cosine = (
            part[chosen] for part in (features, norm, labels, own, cosine)
        )
        if hard is not None:
            hard = replace(hard, threshold=hard.threshold[chosen])
    feature_scale = None
    if parts.objective.scale_is_norm:
        features = (features * norm[:, None]).to(parts.compute_dtype)
        feature_scale = norm
    table = parts.table
    problem = Problem(
        features=features,
        rows=table.current_rows(table.rows_of(index)),
        scale=parts.objective.scale_at(context.state),
        target=places(own, index),
        shift=static_shift(
            parts.objective.logit_range(context.state), table.num_classes, parts.compute_dtype
        ),
        num_centres=table.num_centres,
        feature_scale=feature_scale,
        hard=hard,
        absent=absent_classes(parts, index),
    )
    if parts.miner is None:
        return problem
    return parts.miner.select(
        problem,
        labels=labels,
        index=index,
        cosine=cosine,
        step=context.step,
        merged=parts.merged,
    )


def places(own: Tensor, index: Tensor | None) -> Tensor:
    """Position of each own class among the candidates, -1 where it is none of them."""
    return own if index is None else place_of(own, index)


def absent_classes(parts: Parts, index: Tensor | None) -> Tensor | None:
    """Candidates that are nobody's negatives: classes merged away, centres without samples so far."""
    table, absent = parts.table, None
    if isinstance(parts.weights, ClassCentres):
        absent = (table.row_step if index is None else table.row_step[index]) == 0
    parked = parts.merged.parked()
    if len(parked):
        here = places(local_classes(table, parked), index)
        if absent is None:
            num = table.num_local if index is None else index.numel()
            absent = torch.zeros(num, dtype=torch.bool, device=parked.device)
        absent[here[here >= 0]] = True
    return absent


def sweep(parts: Parts, problem: Problem, training: Room | None, reduction: Reduction) -> Swept:
    """The kernel's answer; its sums are on their way to the other ranks before the last product."""
    if training is None:
        return parts.kernel.sweep(problem, want_pull=False, keep_bytes=0, on_sums=reduction.start)
    return parts.kernel.sweep(
        problem,
        want_pull=True,
        keep_bytes=training.keep_bytes,
        spare=training.spare,
        on_sums=reduction.start,
    )


def with_counts(context: Context, counts: Counts) -> Context:
    """The context with the hard negatives' sums over all shards."""
    return replace(context, hard_sum=counts.hard_sum, hard_count=counts.hard_count)


def statistics(
    parts: Parts, counts: Counts, basket: Tensor | None, chosen: Tensor | None
) -> dict[str, Tensor]:
    """What users of hard negatives, filters and mining watch; the same on all ranks.

    Returns:
        hard_negatives or filtered_negatives: their mean number a sample; hard_share or filtered_share: share
        of samples that have any; rejected_negatives: mean number of classes of other baskets left out a
        sample; rejected_share: their share of all candidates of other baskets; rejected_share_b: the same for
        the samples of basket b.
    """
    out = {}
    if counts.hard_count is not None:
        kind = "hard" if parts.negatives.transform(counts.hard_count) is None else "filtered"
        num = max(1, counts.hard_count.numel())
        out[f"{kind}_negatives"] = counts.hard_count.sum() / num
        out[f"{kind}_share"] = (counts.hard_count > 0).sum() / num
    if counts.rejected is not None and counts.mined is not None:
        assert basket is not None
        assert parts.miner is not None
        out["rejected_share"] = share(counts.rejected, counts.mined)
        out["rejected_negatives"] = counts.rejected.sum() / max(1, counts.rejected.numel())
        basket = basket if chosen is None else basket[chosen]
        both = torch.stack([counts.rejected, counts.mined], 1)
        sums = both.new_zeros(len(parts.miner.baskets.sizes), 2).index_add_(0, basket, both)
        for number, (rejected, mined) in enumerate(sums):
            out[f"rejected_share_{number}"] = share(rejected, mined)
    return out


def share(some: Tensor, others: Tensor) -> Tensor:
    """Sum of `some` over that of both; 0 where both are empty."""
    return some.sum() / (some.sum() + others.sum()).clamp_min(1.0)
