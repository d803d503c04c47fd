"""The sweep in blocks of classes, in plain PyTorch, for CPU and GPU.

Per block of about 1,024 rows: one product into the place where the block is kept, exponential and column
sums in place, one product for the features' gradient. The third product, the class gradient, is taken tile
by tile in `class_gradient` while the rows are updated. Nothing of size B x R exists beyond the kept part;
past that budget it is recomputed (a fourth product).

Rows of the compute dtype enter the products as they are; their factor multiplies the block of logits, which
lies in cache. Other rows (bfloat16 compute) must be cast anyway and take the factor along, so that logits are
rounded once.

What is kept: F where the rows are used as they are; E (times the slope of a hard negative's logit) where
they are cast, the factor following in `class_gradient`; cosine logits with a running maximum, whose final
value the sweep does not know yet.

A problem that is not plain (masking.py) takes the same way with a few more passes over a block.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpsoftmax.kernels.masking import nearest_rows, negatives_of, strangers
from mpsoftmax.kernels.problem import (
    OnSums,
    Problem,
    Swept,
    finite,
    ignored,
    no_counts,
    row_factors,
)

CPU_BLOCK_BYTES = 2 * 2**20  # one block of rows: about one core's share of the second-level cache
CUDA_BLOCK_BYTES = 32 * 2**20  # enough tiles to fill every multiprocessor
CPU_CAST_ROWS = 256  # rows cast at once: their wide copy stays in cache
CPU_WIDE_BYTES = 2**20  # wide copy of the narrow logits exponentiated at once: stays in cache


def block_size(dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows in a block, a multiple of 64 between 256 and 16,384."""
    budget = CPU_BLOCK_BYTES if device.type == "cpu" else CUDA_BLOCK_BYTES
    rows = budget // max(1, dim * dtype.itemsize)
    return max(256, min(16_384, rows // 64 * 64))


def sweep(
    problem: Problem,
    *,
    want_pull: bool,
    keep_bytes: int,
    spare: Tensor | None = None,
    on_sums: OnSums = ignored,
) -> Swept:
    """Sum over the candidate rows, block by block (see mpsoftmax.kernels.problem).

    Args:
        problem: The batch and the rows.
        want_pull: Whether the features' gradient is needed; False also keeps nothing.
        keep_bytes: Bytes that may be kept for `class_gradient`; the rest is recomputed.
        spare: The `kept` of an earlier sweep that nobody reads any more, used again if it is of the right
            size, else freed: fresh pages from the operating system cost more than all exponentials.
        on_sums: Called once with the answer when total, maximum and counts are final, before the last
            product: a collective that it starts runs beside that.

    Returns:
        The sums and the kept part.
    """
    answer = empty_answer(problem, want_pull, keep_bytes, rows_in_block(problem), spare)
    return sweep_blocks(block_of, answer, on_sums)


FillBlock = Callable[[Swept, int, int, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(answer, start, stop, entries [n, B], scratch for cast rows) -> F or E times slope of rows start..stop-1,
and the rows as they enter the products. Fills the answer's factor and `entries`, which may be what it keeps;
adds to its total and counts."""


def sweep_blocks(fill: FillBlock, answer: Swept, on_sums: OnSums) -> Swept:
    """`sweep` into an empty answer; `fill` does a block but for the features' gradient."""
    problem, pull, kept = answer.problem, answer.pull, answer.kept
    num_rows, size = problem.num_rows, rows_in_block(problem)
    scratch = problem.features.new_empty(min(size, num_rows), problem.batch)
    scratch_rows = cast_scratch(problem, min(size, num_rows))
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        entries = scratch[: stop - start]
        if kept is not None and stop <= kept.shape[0]:
            entries = kept[start:stop]
        entries, rows = fill(answer, start, stop, entries, scratch_rows)
        if stop == num_rows:
            on_sums(answer)
        if pull is not None:
            accumulate_pull(pull, entries, rows)
    if not num_rows:
        on_sums(answer)
    return answer


def block_of(
    answer: Swept, start: int, stop: int, entries: Tensor, scratch: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See FillBlock."""
    problem, total, factor = answer.problem, answer.total, answer.factor[start:stop]
    rows = write_logits(problem, start, stop, entries, factor, scratch)
    if not problem.is_plain:
        entries = selective(entries, answer, start)
    elif answer.maximum is None:
        exponentiate(entries, problem, start, total)
    else:
        entries = online_maximum(entries, answer, answer.maximum, start)
        total += torch.sum(entries, 0, dtype=total.dtype)
    if answer.pull is not None and used_as_they_are(problem):
        entries.mul_(factor[:, None])
    return entries, rows


def empty_answer(
    problem: Problem, want_pull: bool, keep_bytes: int, size: int, spare: Tensor | None
) -> Swept:
    """What a sweep in blocks of `size` rows fills block by block: sums of nothing, room for what is kept."""
    batch, dtype, device = problem.batch, problem.accumulate_dtype, problem.features.device
    num_kept = kept_rows(problem, keep_bytes, size) if want_pull else 0
    total = torch.zeros(batch, dtype=dtype, device=device)
    dim = problem.features.shape[1]
    return Swept(
        problem=problem,
        total=total,
        maximum=torch.full_like(total, -torch.inf) if problem.shift is None else None,
        pull=torch.zeros(batch, dim, dtype=dtype, device=device) if want_pull else None,
        factor=torch.empty(problem.num_rows, dtype=dtype, device=device),
        kept=buffer_like(problem.features, (num_kept, batch), spare) if num_kept else None,
        counts=no_counts(problem),
    )


def rows_in_block(problem: Problem) -> int:
    """Rows in a block of this problem: whole classes."""
    features = problem.features
    size = block_size(features.shape[1], features.dtype, features.device)
    return max(1, size // problem.num_centres) * problem.num_centres


def kept_rows(problem: Problem, keep_bytes: int, size: int) -> int:
    """How many rows fit the budget: all of them, or a whole number of blocks of `size` rows."""
    per_row = problem.batch * problem.features.element_size()
    fitting = keep_bytes // max(1, per_row)
    if fitting >= problem.num_rows:
        return problem.num_rows
    return fitting // size * size


def buffer_like(features: Tensor, shape: tuple[int, int], spare: Tensor | None) -> Tensor:
    """Uninitialised [shape] of the features' dtype and device: `spare` where it fits.

    Where it does not, its memory is given back first: samples of classes differ in size from step to step,
    and two E at once would double the peak.
    """
    if spare is not None:
        if spare.shape == shape and spare.dtype == features.dtype:
            return spare
        spare.untyped_storage().resize_(0)
    return features.new_empty(shape)


def used_as_they_are(problem: Problem) -> bool:
    """Whether rows enter the products as stored, neither cast nor multiplied by their factor."""
    return problem.rows.dtype == problem.features.dtype


def cast_scratch(problem: Problem, num_rows: int) -> Tensor | None:
    """Room for `num_rows` rows in the compute dtype; None where they are used as they are."""
    if used_as_they_are(problem):
        return None
    return problem.features.new_empty(num_rows, problem.features.shape[1])


def write_logits(
    problem: Problem,
    start: int,
    stop: int,
    entries: Tensor,
    factor: Tensor,
    scratch: Tensor | None,
) -> Tensor:
    """Logits and factors of rows start..stop-1 into `entries` [n, B] and `factor` [n].

    `scratch` [>= n, D] compute dtype takes the rows where they must be cast.

    Returns:
        The rows as they entered the product, [n, D] compute dtype.
    """
    rows = problem.rows[start:stop]
    if scratch is None:
        torch.mm(rows, problem.features.T, out=entries)
        factor.copy_(row_factors(problem, rows))  # after the product: the rows are in cache now
        entries.mul_(factor[:, None])
        return rows
    cast = scratch[: stop - start]
    size = CPU_CAST_ROWS if rows.is_cpu else stop - start
    for wide, narrow, part in zip(
        rows.split(size), cast.split(size), factor.split(size), strict=True
    ):
        part.copy_(row_factors(problem, wide))
        narrow.copy_(wide * part[:, None])
    torch.mm(cast, problem.features.T, out=entries)
    return cast


def exponentiate(
    entries: Tensor, problem: Problem, start: int, total: Tensor | None = None
) -> None:
    """Logits -> E in place, with the static shift; the target's entry becomes 0. Adds their sums to `total`.

    On a CPU narrow logits are exponentiated and summed in the accumulate dtype, which is twice as fast there.
    """
    if entries.is_cpu and entries.dtype != problem.accumulate_dtype:
        exponentiate_wide(entries, problem, start, total)
        return
    if problem.shift:
        entries.sub_(problem.shift)
    entries.exp_()
    problem.own.fill(entries, start, 0.0)
    if total is not None:
        total += torch.sum(entries, 0, dtype=total.dtype)


def exponentiate_wide(entries: Tensor, problem: Problem, start: int, total: Tensor | None) -> None:
    """`exponentiate` through the accumulate dtype, some rows at a time; E is rounded once, its sum is not."""
    dtype = problem.accumulate_dtype
    problem.own.fill(entries, start, -torch.inf)
    size = max(1, CPU_WIDE_BYTES // (max(1, problem.batch) * dtype.itemsize))
    scratch = entries.new_empty(min(size, len(entries)), problem.batch, dtype=dtype)
    for narrow in entries.split(size):
        wide = scratch[: len(narrow)].copy_(narrow)
        if problem.shift:
            wide.sub_(problem.shift)
        wide.exp_()
        if total is not None:
            total += wide.sum(0)
        narrow.copy_(wide)


def online_maximum(entries: Tensor, answer: Swept, maximum: Tensor, start: int) -> Tensor:
    """E of this block against the running maximum; earlier sums are rescaled to it in place.

    `entries` keeps the logits (the final maximum is not known yet); E is returned apart.
    """
    answer.problem.own.fill(entries, start, -torch.inf)
    raise_maximum(entries, answer, maximum)
    return torch.exp(entries.to(maximum.dtype) - finite(maximum)).to(entries.dtype)


def raise_maximum(logits: Tensor, answer: Swept, maximum: Tensor) -> None:
    """Lift the running maximum to that of a block [n, B] and rescale the sums so far, in place."""
    new = torch.maximum(maximum, logits.amax(0).to(maximum.dtype))
    rescale = torch.exp(maximum - finite(new))
    answer.total.mul_(rescale)
    if answer.pull is not None:
        answer.pull.mul_(rescale[:, None])
    maximum.copy_(new)


def selective(entries: Tensor, answer: Swept, start: int) -> Tensor:
    """E times slope of a block of a problem that is not plain; adds to the answer's total and counts.

    With a static shift the result replaces `entries`; with a running maximum it is returned apart.
    """
    problem, maximum, total = answer.problem, answer.maximum, answer.total
    block = negatives_of(entries, problem, start // problem.num_centres, answer.counts)
    if maximum is None:
        exponentials = torch.exp(block.logits - (problem.shift or 0.0))
        out = entries
    else:
        raise_maximum(block.logits, answer, maximum)
        exponentials = torch.exp(block.logits - finite(maximum))
        out = torch.empty_like(entries)
    total += exponentials.sum(0)
    return block.spread(exponentials, out)


def accumulate_pull(pull: Tensor, entries: Tensor, rows: Tensor) -> None:
    """Pull += entries^T rows; in bfloat16 the product of one block is rounded, the sum is not."""
    if pull.dtype == rows.dtype:
        pull.addmm_(entries.T, rows)
    else:
        pull += entries.T @ rows


def class_gradient(swept: Swept, weighted: Tensor, start: int, stop: int, out: Tensor) -> Tensor:
    """Write sum_i F_ic weighted_i of rows start..stop-1 into `out`.

    Args:
        swept: What `sweep` returned.
        weighted: [B, D] compute dtype, from `mpsoftmax.kernels.problem.weigh`.
        start: First row.
        stop: One past the last row; the range may straddle the kept and the recomputed part.
        out: [stop - start, D] accumulate dtype, overwritten.

    Returns:
        `out`.
    """
    return multiply_entries(entries_of, swept, weighted, start, stop, out)


def multiply_entries(
    entries_of: Callable[[Swept, int, int], Tensor],
    swept: Swept,
    weighted: Tensor,
    start: int,
    stop: int,
    out: Tensor,
) -> Tensor:
    """`class_gradient`, with F from `entries_of`, asked for the kept and the recomputed part apart."""
    num_kept = 0 if swept.kept is None else swept.kept.shape[0]
    middle = min(max(num_kept, start), stop)
    for first, last in ((start, middle), (middle, stop)):
        if first < last:
            entries = entries_of(swept, first, last)
            target = out[first - start : last - start]
            if not used_as_they_are(swept.problem):
                target.copy_(entries @ weighted).mul_(swept.factor[first:last, None])
            elif entries.dtype == target.dtype:
                torch.mm(entries, weighted, out=target)
            else:
                target.copy_(entries @ weighted)
    return out


def entries_of(swept: Swept, start: int, stop: int) -> Tensor:
    """F (E times slope where rows are cast) of rows start..stop-1, all kept or all recomputed: [n, B]."""
    problem = swept.problem
    kept = swept.kept is not None and stop <= swept.kept.shape[0]
    if kept and swept.maximum is None:
        assert swept.kept is not None
        return swept.kept[start:stop]
    k = problem.num_centres
    first, last = start // k * k, -(-stop // k) * k  # whole classes
    if kept:
        assert swept.kept is not None
        entries = swept.kept[first:last]
    else:
        entries = problem.features.new_empty(last - first, problem.batch)
        scratch, factor = cast_scratch(problem, last - first), swept.factor[first:last]
        write_logits(problem, first, last, entries, torch.empty_like(factor), scratch)
    entries = exponentials_of(entries, swept, first)
    if used_as_they_are(problem):
        entries.mul_(swept.factor[first:last, None])
    return entries[start - first : stop - first]


def exponentials_of(entries: Tensor, swept: Swept, start: int) -> Tensor:
    """E times slope from cosine logits [n, B] of rows from `start` on; kept logits stay as they are."""
    problem, maximum = swept.problem, swept.maximum
    if problem.is_plain and maximum is None:
        exponentiate(entries, problem, start)
        return entries
    shift = problem.shift or 0.0 if maximum is None else finite(maximum)
    if problem.is_plain:
        problem.own.fill(entries, start, -torch.inf)
        return torch.exp(entries.to(swept.factor.dtype) - shift).to(entries.dtype)
    block = negatives_of(entries, problem, start // problem.num_centres)
    return block.spread(torch.exp(block.logits - shift), torch.empty_like(entries))


def nearest(problem: Problem, groups: Sequence[tuple[int, int]], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest classes of other baskets, for every sample and group of classes.

    Args:
        problem: With a selection: a class counts where it shares no basket with the sample and is not
            left out by it.
        groups: G ranges (start, stop) of class positions.
        k: At least 1.

    Returns:
        Cosines [B, G, k] in the accumulate dtype, descending, -inf where there are fewer, and class
        positions int64 [B, G, k], -1 there.
    """
    parts = [nearest_in(problem, start, stop, k) for start, stop in groups]
    values, positions = (torch.stack(part, 1) for part in zip(*parts, strict=True))
    return values, positions


def nearest_in(problem: Problem, start: int, stop: int, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of class positions start..stop-1: cosines and positions [B, k]."""
    features, dtype, centres = problem.features, problem.accumulate_dtype, problem.num_centres
    best = torch.full((k, problem.batch), -torch.inf, dtype=dtype, device=features.device)
    where = torch.full((k, problem.batch), -1, dtype=torch.int64, device=features.device)
    size = rows_in_block(problem)
    scratch = features.new_empty(min(size, problem.num_rows), problem.batch)
    scratch_rows = cast_scratch(problem, scratch.shape[0])
    factor = torch.empty(scratch.shape[0], dtype=dtype, device=features.device)
    for first in range(start, stop, size // centres):
        last = min(first + size // centres, stop)
        low, high = first * centres, last * centres
        entries = scratch[: high - low]
        write_logits(problem, low, high, entries, factor[: high - low], scratch_rows)
        cosines = strangers(nearest_rows(entries, problem)[0], problem, first)
        value, place = cosines.topk(min(k, last - first), dim=0)
        place = torch.where(value > -torch.inf, place + first, -1)
        best, order = torch.cat([best, value]).topk(k, dim=0)
        where = torch.cat([where, place]).gather(0, order)
    return best.T, where.T
