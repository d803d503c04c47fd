"""The slow twin that defines the kernels: one [R, B] matrix, any float dtype, no blocks.

Every other kernel is tested against this one, values and gradients (tests/head/test_kernels.py).
"""

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import Problem, Swept, mask_target, unit_rows


def sweep(
    problem: Problem, *, want_pull: bool, keep_bytes: int, spare: Tensor | None = None
) -> Swept:
    """Sum over all candidate rows at once (KERNELS: `total`, `pull` of mpsoftmax.kernels.problem).

    Args:
        problem: The batch and the rows.
        want_pull: Whether the features' gradient is needed.
        keep_bytes: Ignored here: the reference always keeps the whole matrix.
        spare: Ignored here.

    Returns:
        The sums, and the whole matrix of logits or exponentials.
    """
    dtype = problem.accumulate_dtype
    rows = unit_rows(problem, 0, problem.num_rows)
    logits = rows @ problem.features.T
    maximum = None
    if problem.shift is None:
        mask_target(logits, problem.owners, 0, -torch.inf)
        maximum = row_maximum(logits.to(dtype))
        entries = torch.exp(logits.to(dtype) - finite(maximum)).to(logits.dtype)
    else:
        entries = torch.exp(logits - problem.shift)
        mask_target(entries, problem.owners, 0, 0.0)
    total = entries.to(dtype).sum(0)
    pull = (entries.T @ rows).to(dtype) if want_pull else None
    kept = logits if problem.shift is None else entries
    return Swept(problem=problem, total=total, maximum=maximum, pull=pull, kept=kept)


def class_gradient(swept: Swept, weighted: Tensor, start: int, stop: int, out: Tensor) -> Tensor:
    """Write sum_i E_ic weighted_i of rows start..stop-1 into `out`.

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
    entries = swept.kept[start:stop]
    if swept.maximum is not None:
        shifted = entries.to(out.dtype) - finite(swept.maximum)
        entries = torch.exp(shifted).to(weighted.dtype)
    return out.copy_(entries @ weighted)


def row_maximum(logits: Tensor) -> Tensor:
    """Largest logit of each sample over the rows: [R, B] -> [B]; -inf where there are none."""
    if logits.shape[0] == 0:
        return logits.new_full((logits.shape[1],), -torch.inf)
    return logits.amax(0)


def finite(maximum: Tensor) -> Tensor:
    """-inf (no negatives at all) replaced by 0, so that exp(-inf - maximum) is 0 and not NaN."""
    return maximum.masked_fill(maximum == -torch.inf, 0.0)
