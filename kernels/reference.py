"""The slow twin that defines the kernels: one [R, B] matrix, any float dtype, no blocks.

Every other kernel is tested against this one, values and gradients (tests/head/test_kernels.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import (
    Counts,
    OnSums,
    Pairs,
    Problem,
    Swept,
    finite,
    ignored,
    row_factors,
)


def sweep(
    problem: Problem,
    *,
    want_pull: bool,
    keep_bytes: int,
    spare: Tensor | None = None,
    on_sums: OnSums = ignored,
) -> Swept:
    """Sum over all candidate rows at once (see mpsoftmax.kernels.problem).

    Args:
        problem: The batch and the rows.
        want_pull: Whether the features' gradient is needed.
        keep_bytes: Ignored here: the reference always keeps the whole matrix.
        spare: Ignored here.
        on_sums: Called once with the answer when all is known.

    Returns:
        The sums, and the whole matrix E.
    """
    dtype = problem.accumulate_dtype
    factor, scaled, cosines = all_cosines(problem)
    negative = is_negative(problem, cosines.amax(1))
    logits, slope, is_hard = negatives_logits(problem, cosines, negative)
    maximum = row_maximum(logits) if problem.shift is None else None
    shifted = logits - (problem.shift or 0.0) if maximum is None else logits - finite(maximum)
    entries = torch.exp(shifted)
    total = entries.to(problem.features.dtype).to(dtype).sum((0, 1))
    kept = (entries * slope).to(problem.features.dtype).view(problem.num_rows, problem.batch)
    pull = (kept.T @ scaled).to(dtype) if want_pull else None
    answer = Swept(
        problem=problem,
        total=total,
        maximum=maximum,
        pull=pull,
        factor=factor,
        kept=kept,
        counts=count(problem, cosines, negative, is_hard),
    )
    on_sums(answer)
    return answer


def all_cosines(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Row factors [R], rows times factor [R, D] in the compute dtype, and cosines [num_classes, K, B]."""
    dtype = problem.accumulate_dtype
    factor = row_factors(problem, problem.rows)
    scaled = (problem.rows.to(dtype) * factor[:, None]).to(problem.features.dtype)
    cosines = (scaled @ problem.features.T).to(dtype) / problem.cosine_unit
    return factor, scaled, cosines.view(problem.num_classes, problem.num_centres, problem.batch)


def is_negative(problem: Problem, cosines: Tensor) -> Tensor:
    """Bool [num_classes, B]; `cosines` [num_classes, B] are those of each class's nearest row."""
    negative = ~dense(problem.own, cosines)
    if problem.absent is not None:
        negative &= ~problem.absent[:, None]
    selection = problem.selection
    if selection is not None:
        others = selection.others(0, problem.num_classes)
        allowed = torch.ones_like(others)
        if selection.limit is not None:
            allowed &= cosines < selection.limit
        if selection.dropped is not None:
            allowed &= ~dense(selection.dropped, cosines)
        if selection.kept is not None:
            allowed = dense(selection.kept, cosines)
        negative &= ~others | allowed
    return negative


def dense(pairs: Pairs, like: Tensor) -> Tensor:
    """Bool [num_classes, B]: the pairs whose class is a candidate."""
    out = torch.zeros_like(like, dtype=torch.bool)
    here = pairs.classes >= 0
    out[pairs.classes[here], pairs.samples[here]] = True
    return out


def negatives_logits(
    problem: Problem, cosines: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[C, K, B] logits (-inf but for the nearest row of a negative class), slopes, and which are hard."""
    nearest_row = torch.zeros_like(cosines, dtype=torch.bool)
    nearest_row.scatter_(1, cosines.argmax(1, keepdim=True), True)
    logits, slope = cosines * problem.cosine_unit, torch.ones_like(cosines)
    counted, is_hard = nearest_row & negative[:, None], torch.zeros_like(nearest_row)
    hard = problem.hard
    if hard is not None:
        is_hard = (cosines > hard.threshold) & counted
        value = hard.value[0] + hard.value[1] * cosines + hard.value[2] * cosines**2
        logits = torch.where(is_hard, problem.cosine_unit * value, hard.easy * logits)
        slope = torch.where(is_hard, hard.slope[0] + hard.slope[1] * cosines, hard.easy)
    return logits.masked_fill(~counted, -torch.inf), slope, is_hard


def count(problem: Problem, cosines: Tensor, negative: Tensor, is_hard: Tensor) -> Counts:
    """What the problem's further wishes came to."""
    sums: dict[str, Tensor] = {}
    if problem.hard is not None:
        sums["hard_sum"] = (cosines * is_hard).sum((0, 1))
        sums["hard_count"] = is_hard.sum((0, 1)).to(cosines.dtype)
    if problem.selection is not None:
        others = problem.selection.others(0, problem.num_classes)
        if problem.absent is not None:
            others &= ~problem.absent[:, None]
        sums["rejected"] = (others & ~negative).sum(0).to(cosines.dtype)
        sums["mined"] = (others & negative).sum(0).to(cosines.dtype)
    return Counts(**sums)


def nearest(problem: Problem, groups: Sequence[tuple[int, int]], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest classes of other baskets, for every sample and group of classes.

    Args:
        problem: With a selection: a class counts where it shares no basket with the sample and is not
            left out by it.
        groups: G ranges (start, stop) of class positions.
        k: At least 1.

    Returns:
        Cosines [B, G, k], descending, -inf where there are fewer, and class positions int64 [B, G, k], -1
        there.
    """
    assert problem.selection is not None
    cosines = all_cosines(problem)[2].amax(1)
    eligible = is_negative(problem, cosines) & problem.selection.others(0, problem.num_classes)
    cosines = cosines.masked_fill(~eligible, -torch.inf)
    values = cosines.new_full((problem.batch, len(groups), k), -torch.inf)
    positions = torch.full_like(values, -1, dtype=torch.int64)
    for group, (start, stop) in enumerate(groups):
        value, place = cosines[start:stop].T.sort(1, descending=True)
        num = min(k, stop - start)
        values[:, group, :num] = value[:, :num]
        positions[:, group, :num] = torch.where(
            value[:, :num] > -torch.inf, place[:, :num] + start, -1
        )
    return values, positions


def class_gradient(swept: Swept, weighted: Tensor, start: int, stop: int, out: Tensor) -> Tensor:
    """Write sum_i F_ic weighted_i of rows start..stop-1 into `out`.

    Args:
        swept: What `sweep` returned.
        weighted: [B, D] compute dtype, from `mpsoftmax.kernels.problem.weigh`.
        start: First row.
        stop: One past the last row.
        out: [stop - start, D] accumulate dtype, overwritten.

    Returns:
        `out`.
    """
    assert swept.kept is not None
    product = (swept.kept[start:stop] @ weighted).to(out.dtype)
    return torch.mul(product, swept.factor[start:stop, None], out=out)


def row_maximum(logits: Tensor) -> Tensor:
    """Largest logit of each sample over the rows: [C, K, B] -> [B]; -inf where there are none."""
    if logits.shape[0] == 0:
        return logits.new_full((logits.shape[2],), -torch.inf)
    return logits.amax((0, 1))
