"""The sweep in blocks of classes, in plain PyTorch, for CPU and GPU.

Per block of about 1,024 rows: one product into the place where the block is kept, exponential and column
sums in place, one product for the features' gradient. The third product, the class gradient, is taken tile
by tile in `class_gradient` while the rows are updated. Nothing of size B x R exists beyond the kept part;
past that budget it is recomputed (a fourth product).

Rows of the compute dtype enter the products as they are; their factor multiplies the block of logits, which
lies in cache. Other rows (bfloat16 compute) must be cast anyway and take the factor along, so that logits are
rounded once.

What is kept: F where the rows are used as they are; E where they are cast, the factor following in
`class_gradient`; plain logits with a running maximum, whose final value the sweep does not know yet.
"""

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import Problem, Swept, finite, mask_target, row_factors

CPU_BLOCK_BYTES = 2 * 2**20  # one block of rows: about one core's share of the second-level cache
CUDA_BLOCK_BYTES = 32 * 2**20  # enough tiles to fill every multiprocessor
CPU_CAST_ROWS = 256  # rows cast at once: their wide copy stays in cache


def block_size(dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows in a block, a multiple of 64 between 256 and 16,384."""
    budget = CPU_BLOCK_BYTES if device.type == "cpu" else CUDA_BLOCK_BYTES
    rows = budget // max(1, dim * dtype.itemsize)
    return max(256, min(16_384, rows // 64 * 64))


def sweep(
    problem: Problem, *, want_pull: bool, keep_bytes: int, spare: Tensor | None = None
) -> Swept:
    """Sum over the candidate rows, block by block (see mpsoftmax.kernels.problem).

    Args:
        problem: The batch and the rows.
        want_pull: Whether the features' gradient is needed; False also keeps nothing.
        keep_bytes: Bytes that may be kept for `class_gradient`; the rest is recomputed.
        spare: The `kept` of an earlier sweep that nobody reads any more, used again if it is of the right
            size: fresh pages from the operating system cost more than all exponentials.

    Returns:
        The sums and the kept part.
    """
    features, dtype = problem.features, problem.accumulate_dtype
    batch, num_rows = problem.batch, problem.num_rows
    num_kept = kept_rows(problem, keep_bytes) if want_pull else 0
    kept = buffer_like(features, (num_kept, batch), spare) if num_kept else None
    total = torch.zeros(batch, dtype=dtype, device=features.device)
    pull = torch.zeros(batch, features.shape[1], dtype=dtype, device=features.device)
    factor = torch.empty(num_rows, dtype=dtype, device=features.device)
    maximum = torch.full_like(total, -torch.inf) if problem.shift is None else None
    size = block_size(features.shape[1], features.dtype, features.device)
    scratch = features.new_empty(min(size, num_rows), batch)
    scratch_rows = cast_scratch(problem, min(size, num_rows))
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        entries = scratch[: stop - start]
        if kept is not None and stop <= num_kept:
            entries = kept[start:stop]
        rows = write_logits(problem, start, stop, entries, factor[start:stop], scratch_rows)
        if maximum is None:
            exponentiate(entries, problem, start)
        else:
            entries = online_maximum(entries, problem, start, maximum, total, pull)
        total += torch.sum(entries, 0, dtype=dtype)
        if want_pull:
            if used_as_they_are(problem):
                entries.mul_(factor[start:stop, None])
            accumulate_pull(pull, entries, rows)
    return Swept(
        problem=problem,
        total=total,
        maximum=maximum,
        pull=pull if want_pull else None,
        factor=factor,
        kept=kept,
    )


def kept_rows(problem: Problem, keep_bytes: int) -> int:
    """How many rows fit the budget: all of them, or a whole number of blocks."""
    per_row = problem.batch * problem.features.element_size()
    fitting = keep_bytes // max(1, per_row)
    if fitting >= problem.num_rows:
        return problem.num_rows
    size = block_size(problem.features.shape[1], problem.features.dtype, problem.features.device)
    return fitting // size * size


def buffer_like(features: Tensor, shape: tuple[int, int], spare: Tensor | None) -> Tensor:
    """Uninitialised [shape] of the features' dtype and device: `spare` where it fits."""
    if spare is not None and spare.shape == shape and spare.dtype == features.dtype:
        return spare
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


def exponentiate(entries: Tensor, problem: Problem, start: int) -> None:
    """Logits -> E in place, with the static shift; the target's entry becomes 0."""
    if problem.shift:
        entries.sub_(problem.shift)
    entries.exp_()
    mask_target(entries, problem.owners, start, 0.0)


def online_maximum(
    entries: Tensor, problem: Problem, start: int, maximum: Tensor, total: Tensor, pull: Tensor
) -> Tensor:
    """E of this block against the running maximum; earlier sums are rescaled to it in place.

    `entries` keeps the logits (the final maximum is not known yet); E is returned apart.
    """
    mask_target(entries, problem.owners, start, -torch.inf)
    new = torch.maximum(maximum, entries.amax(0).to(maximum.dtype))
    rescale = torch.exp(maximum - finite(new))
    total.mul_(rescale)
    pull.mul_(rescale[:, None])
    maximum.copy_(new)
    return torch.exp(entries.to(new.dtype) - finite(new)).to(entries.dtype)


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
    num_kept = 0 if swept.kept is None else swept.kept.shape[0]
    middle = min(max(num_kept, start), stop)
    for first, last in ((start, middle), (middle, stop)):
        if first < last:
            entries = entries_of(swept, first, last)
            target = out[first - start : last - start]
            if used_as_they_are(swept.problem):
                torch.mm(entries, weighted, out=target)
            else:
                torch.mul(entries @ weighted, swept.factor[first:last, None], out=target)
    return out


def entries_of(swept: Swept, start: int, stop: int) -> Tensor:
    """F (E where rows are cast) of rows start..stop-1, all kept or all recomputed: [n, B]."""
    problem, factor = swept.problem, swept.factor[start:stop]
    kept = swept.kept is not None and stop <= swept.kept.shape[0]
    if kept:
        assert swept.kept is not None
        entries = swept.kept[start:stop]
        if swept.maximum is None:
            return entries
    else:
        entries = problem.features.new_empty(stop - start, problem.batch)
        scratch = cast_scratch(problem, stop - start)
        write_logits(problem, start, stop, entries, torch.empty_like(factor), scratch)
    if swept.maximum is None:
        exponentiate(entries, problem, start)
    else:
        mask_target(entries, problem.owners, start, -torch.inf)
        shifted = entries.to(factor.dtype) - finite(swept.maximum)
        entries = torch.exp(shifted).to(entries.dtype)
    return entries.mul_(factor[:, None]) if used_as_they_are(problem) else entries
