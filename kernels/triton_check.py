"""Whether the Triton kernels agree with `reference` on the device at hand: asked before they are taken.

They were written and tested without a GPU (docs/kernels.md): the first run on a kind of hardware is this one.
"""

from functools import cache
from typing import get_args

import torch

from mpsoftmax.kernels import reference, triton_sweep
from mpsoftmax.kernels.problem import Problem, weigh
from mpsoftmax.kernels.triton_launch import Way

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


@cache
def disagreement(device: torch.device) -> str | None:
    """What keeps Triton's kernels from being used on `device`: an error or wrong numbers; None if nothing."""
    for dtype, limit in TOLERANCE.items():
        for way in get_args(Way):
            if way == "blocked":
                continue
            try:
                error = largest_error(device, dtype, way)
            except Exception as problem:  # of a compiler or a driver: any kind
                return f"failed ({way}, {dtype}): {type(problem).__name__}: {problem}"
            if not error < limit:
                return f"disagrees with reference ({way}, {dtype}): error {error:.1e}, limit {limit:.0e}"
    return None


def largest_error(device: torch.device, dtype: torch.dtype, way: Way) -> float:
    """Relative error of total, pull and class gradient on a small problem; NaN where a number is NaN."""
    stream = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(40, 72, generator=stream))
    problem = Problem(
        features=features.to(device, dtype),
        rows=torch.randn(300, 72, generator=stream).to(device),
        scale=8.0,
        target=torch.arange(40, device=device) * 7,
        shift=3.0,
    )
    ours = triton_sweep.sweep(problem, want_pull=True, keep_bytes=2**30, way=way)
    theirs = reference.sweep(problem, want_pull=True, keep_bytes=2**30)
    assert ours.pull is not None
    assert theirs.pull is not None
    found, expected = torch.empty_like(problem.rows), torch.empty_like(problem.rows)
    triton_sweep.class_gradient(ours, weigh(ours, 1 / ours.total), 0, 300, found)
    reference.class_gradient(theirs, weigh(theirs, 1 / theirs.total), 0, 300, expected)
    pairs = ((ours.total, theirs.total), (ours.pull, theirs.pull), (found, expected))
    errors = torch.stack([(a - b).norm() / b.norm() for a, b in pairs])
    return float(errors.max())
