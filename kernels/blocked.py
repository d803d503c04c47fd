"""The sweep in blocks of classes, in plain PyTorch, for CPU and GPU.

Per block of about 1,024 rows: normalise (into a scratch block that stays in cache), one GEMM into the
place where E is kept, exponential and column sums in place, one GEMM for the features' gradient. The
third GEMM, the class gradient, is taken tile by tile in `class_gradient` while the rows are updated.
Nothing of size B x R exists beyond the kept part of E; past that budget E is recomputed (a fourth GEMM).
"""

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import Problem, Swept, mask_target, unit_rows
from mpsoftmax.kernels.reference import finite

CPU_BLOCK_BYTES = 2 * 2**20  # one block of rows: about one core's share of the second-level cache
CUDA_BLOCK_BYTES = 32 * 2**20  # enough tiles to fill every multiprocessor


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
        keep_bytes: Bytes of E that may be kept for `class_gradient`; the rest is recomputed.
        spare: The `kept` of an earlier sweep that nobody reads any more. E goes there if it is of the right
            size: fresh pages from the operating system cost about as much as all exponentials.

    Returns:
        The sums and the kept part of E.
    """
    features, dtype = problem.features, problem.accumulate_dtype
    batch, num_rows = problem.batch, problem.num_rows
    num_kept = kept_rows(problem, keep_bytes) if want_pull else 0
    kept = buffer_like(features, (num_kept, batch), spare) if num_kept else None
    total = torch.zeros(batch, dtype=dtype, device=features.device)
    pull = torch.zeros(batch, features.shape[1], dtype=dtype, device=features.device)
    maximum = torch.full_like(total, -torch.inf) if problem.shift is None else None
    size = block_size(features.shape[1], features.dtype, features.device)
    scratch_rows = features.new_empty(min(size, num_rows), features.shape[1])
    scratch = features.new_empty(min(size, num_rows), batch)
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        rows = unit_rows(problem, start, stop, out=scratch_rows[: stop - start])
        keep = kept is not None and stop <= num_kept
        entries = kept[start:stop] if keep and kept is not None else scratch[: stop - start]
        torch.mm(rows, features.T, out=entries)
        if maximum is None:
            exponentiate(entries, problem, start)
        else:
            entries = online_maximum(entries, problem, start, maximum, total, pull)
        total += torch.sum(entries, 0, dtype=dtype)
        if want_pull:
            accumulate_pull(pull, entries, rows)
    return Swept(
        problem=problem,
        total=total,
        maximum=maximum,
        pull=pull if want_pull else None,
        kept=kept,
    )


def kept_rows(problem: Problem, keep_bytes: int) -> int:
    """How many rows' E fit the budget: all of them, or a whole number of blocks."""
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
    """Write sum_i E_ic weighted_i of rows start..stop-1 into `out`.

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
            if target.dtype == entries.dtype:
                torch.mm(entries, weighted, out=target)
            else:
                target.copy_(entries @ weighted)
    return out


def entries_of(swept: Swept, start: int, stop: int) -> Tensor:
    """E of rows start..stop-1, all kept or all recomputed: [stop - start, B]."""
    problem = swept.problem
    kept = swept.kept is not None and stop <= swept.kept.shape[0]
    if kept and swept.maximum is None:
        assert swept.kept is not None
        return swept.kept[start:stop]
    if kept:
        assert swept.kept is not None
        logits = swept.kept[start:stop]
    else:
        logits = unit_rows(problem, start, stop) @ problem.features.T
    if swept.maximum is None:
        exponentiate(logits, problem, start)
        return logits
    if not kept:
        mask_target(logits, problem.owners, start, -torch.inf)
    shifted = logits.to(swept.total.dtype) - finite(swept.maximum)
    return torch.exp(shifted).to(problem.features.dtype)
