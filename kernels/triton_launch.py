"""Launch shapes of the Triton kernels, and which way a problem takes: plain arithmetic, no Triton needed.

A launch shape is a tile and how many warps and stages of the software pipeline work on it. The tests compile
every kernel with exactly these shapes for sm_80 and sm_90 and hold them to registers and shared memory
(tests/kernels/test_compiled.py); docs/kernels.md says what was and was not run on hardware.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from mpsoftmax.kernels.problem import Problem

Way = Literal["fused", "plain", "blocked"]

FUSED_BATCH = {torch.bfloat16: 1024, torch.float32: 32}
"""Largest batch whose logits, exponentials and sums are one kernel. By arithmetic, not by measurement: see
docs/kernels.md."""

BLOCK_BYTES = 16 * 2**20
"""A block of E between its kernels: stays in the second-level cache of an A100 (40 MB)."""
MAX_UPDATE_DIM = 512  # a tile of the class gradient, D whole, must fit the registers


@dataclass(frozen=True)
class Launch:
    """Tile of classes x samples (x depth of the product), and who works on it."""

    classes: int
    samples: int
    depth: int
    num_warps: int
    num_stages: int


def way_of(problem: Problem) -> Way:
    """Which way a problem takes under the name `triton`; a rule of its shape and dtypes alone.

    blocked     sub-centres (K > 1), compute dtypes other than bfloat16 and float32, rows other than
                float32, and problems without rows or samples: mpsoftmax.kernels.blocked
    fused       at most FUSED_BATCH samples: product, exponential and sums in one kernel
    plain       otherwise: the product by the vendor's library, then one kernel over the block
    """
    dtype = problem.features.dtype
    if problem.num_centres > 1 or dtype not in FUSED_BATCH or problem.rows.dtype != torch.float32:
        return "blocked"
    if problem.num_rows == 0 or problem.batch == 0:
        return "blocked"
    return "fused" if problem.batch <= FUSED_BATCH[dtype] else "plain"


def rows_in_block(problem: Problem) -> int:
    """Rows swept between two products for the features' gradient: a multiple of 128, 512 to 16,384."""
    rows = BLOCK_BYTES // max(1, problem.batch * problem.features.element_size())
    return max(512, min(16_384, rows // 128 * 128))


def prepare_launch(dim: int) -> Launch:
    """Of the kernel that measures rows and casts them: D whole, 4,096 numbers a program."""
    depth = power_of_two(dim)
    return Launch(max(1, 4096 // depth), 1, depth, num_warps=4, num_stages=1)


def entries_launch(batch: int, *, plain: bool) -> Launch:
    """Of the elementwise kernel; `depth` is how many tiles one program sums over.

    A problem that is not plain carries up to five sums and needs the registers.
    """
    samples = 128 if batch > 64 else 64
    if plain:
        return Launch(2048 // samples, samples, depth=8, num_warps=4, num_stages=1)
    return Launch(1024 // samples, samples, depth=16, num_warps=4, num_stages=1)


def logits_launch(batch: int, dtype: torch.dtype, *, plain: bool) -> Launch:
    """Of the product with exponential and sums.

    A problem that is not plain takes a quarter of the tile: with half of it, ptxas spills where the batch is
    no multiple of 16.
    """
    if dtype == torch.float32:
        return Launch(64, 32, 32, num_warps=8, num_stages=3)  # with 4, ptxas spills on sm_80
    if not plain:
        return Launch(64, 64, 64, num_warps=8, num_stages=3)
    if batch <= 64:
        return Launch(128, 64, 64, num_warps=4, num_stages=4)
    return Launch(128, 128, 64, num_warps=8, num_stages=3)


def power_of_two(number: int) -> int:
    """The least power of two that is at least `number`, and 16."""
    return max(16, 1 << (number - 1).bit_length())


@dataclass(frozen=True)
class UpdateLaunch:
    """Tile of rows x depth of the product over the batch; D in chunks, all of which are held at once."""

    classes: int
    depth: int
    chunk: int
    num_warps: int
    num_stages: int


def update_launch(dim: int, dtype: torch.dtype) -> UpdateLaunch:
    """Of the class gradient with update: a thread holds 64 numbers of the gradient, 32 at D = 128."""
    chunk = min(128, power_of_two(dim))
    if dtype == torch.float32:
        return UpdateLaunch(32, 16, chunk, num_warps=8, num_stages=2)
    if dim <= 128:
        return UpdateLaunch(64, 64, chunk, num_warps=8, num_stages=3)
    if dim <= 256:
        return UpdateLaunch(64, 32, chunk, num_warps=8, num_stages=3)
    return UpdateLaunch(32, 64, chunk, num_warps=8, num_stages=3)
