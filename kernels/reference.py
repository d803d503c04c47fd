"""The slow twin that defines the kernels: one [R, B] matrix, any float dtype, no blocks.

Every other kernel is tested against this one, values and gradients (tests/head/test_kernels.py).
"""

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import Problem, Swept, finite, mask_target, row_factors


def sweep(
    problem: Problem, *, want_pull: bool, keep_bytes: int, spare: Tensor | None = None
) -> Swept:
    """Sum over all candidate rows at once (see mpsoftmax.kernels.problem).

    Args:
        problem: The batch and the rows.
        want_pull: Whether the features' gradient is needed.
        keep_bytes: Ignored here: the reference always keeps the whole matrix.
        spare: Ignored here.

    Returns:
        The sums, and the whole matrix E.
    """
    dtype = problem.accumulate_dtype
    factor = row_factors(problem, problem.rows)
    scaled = (problem.rows.to(dtype) * factor[:, None]).to(problem.features.dtype)
    logits = (scaled @ problem.features.T).to(dtype)
    mask_target(logits, problem.owners, 0, -torch.inf)
    maximum = row_maximum(logits) if problem.shift is None else None
    shifted = logits - (problem.shift or 0.0) if maximum is None else logits - finite(maximum)
    entries = torch.exp(shifted).to(problem.features.dtype)
    total = entries.to(dtype).sum(0)
    pull = (entries.T @ scaled).to(dtype) if want_pull else None
    return Swept(
        problem=problem, total=total, maximum=maximum, pull=pull, factor=factor, kept=entries
    )


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
    """Largest logit of each sample over the rows: [R, B] -> [B]; -inf where there are none."""
    if logits.shape[0] == 0:
        return logits.new_full((logits.shape[1],), -torch.inf)
    return logits.amax(0)
