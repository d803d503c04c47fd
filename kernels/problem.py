"""What a sweep over class rows is asked and what it answers: the types every kernel shares.

Legend: B samples, D embedding dimension, R candidate rows of this rank. A kernel sees one shard and
no process group; it knows neither margins nor objectives. With the row's factor_c = scale / |w_c|, logits
u_ic = factor_c <v_i, w_c>, and E_ic = exp(u_ic - shift) for every candidate row c that is not the sample's
own class, else 0, the derivative of sum_c E_ic by <v_i, w_c> is F_ic = E_ic factor_c, and

    sweep           total_i = sum_c E_ic          pull_i = sum_c F_ic w_c
    class_gradient  out_c   = sum_i F_ic weighted_i,     weighted_i = coefficient_i v_i

The sums are left unnormalised: the normaliser needs the other shards and goes into the coefficients, vectors
of length B, never into the B x R matrix. `out` takes |w_c| for a constant: its owner projects it onto the
tangent space of the row (mpsoftmax.head.class_table).
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NORM_FLOOR = 1e-12  # as torch.nn.functional.normalize: a zero row stays zero instead of NaN


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One batch against one shard's candidate rows."""

    features: Tensor
    """v [B, D] in the compute dtype: unit features, times the sample's own scale if it has one."""
    rows: Tensor
    """[R, D] class rows as stored (float32 or float64), not normalised."""
    scale: float
    """Dimensionless factor on the cosine."""
    target: Tensor
    """int64 [B]: position of the sample's own class in `rows`, or -1 where another shard owns it."""
    shift: float | None
    """Constant subtracted from every exponent, or None: keep a running maximum per sample."""

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """float64 for float64 features, else float32: sums are never kept in bfloat16."""
        return torch.float64 if self.features.dtype == torch.float64 else torch.float32

    @property
    def num_rows(self) -> int:
        """R."""
        return self.rows.shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return self.features.shape[0]

    @cached_property
    def owners(self) -> "Owners":
        """Which samples' own classes lie where."""
        return Owners(self.target)


class Owners:
    """Samples sorted by the row of their own class: a block of rows finds its own without a scan.

    Args:
        target: int64 [B], -1 where another shard owns the class. Read once to the host.

    Attributes:
        rows: int64 [B], `target` sorted.
        samples: int64 [B], the sample each comes from.
    """

    def __init__(self, target: Tensor) -> None:
        self.rows, self.samples = torch.sort(target)
        self._host_rows = self.rows.tolist()

    def within(self, start: int, stop: int) -> slice:
        """The places in `rows` and `samples` of own classes in start..stop-1."""
        return slice(bisect_left(self._host_rows, start), bisect_left(self._host_rows, stop))


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The answer to `sweep`, and what `class_gradient` needs later."""

    problem: Problem
    total: Tensor
    """[B] accumulate dtype: sum of E over this shard's candidates."""
    maximum: Tensor | None
    """[B] accumulate dtype: the shift `total` and `pull` refer to, where no static shift was given."""
    pull: Tensor | None
    """[B, D] accumulate dtype: gradient of `total` with respect to the features v; None if unasked."""
    factor: Tensor
    """[R] accumulate dtype: scale / |w_c|."""
    kept: Tensor | None
    """[K, B] compute dtype, class-major: what the kernel keeps of the first K rows to form F again; rows past
    K are recomputed."""

    @property
    def kept_bytes(self) -> int:
        """Bytes held until the class gradient is taken."""
        return 0 if self.kept is None else self.kept.numel() * self.kept.element_size()


def weigh(swept: Swept, coefficient: Tensor) -> Tensor:
    """Features as `class_gradient` takes them: coefficient_i * v_i, [B, D] compute dtype.

    Args:
        swept: What `sweep` returned.
        coefficient: [B] accumulate dtype: gradient of the loss with respect to `swept.total`.
    """
    features = swept.problem.features
    return (features.to(coefficient.dtype) * coefficient[:, None]).to(features.dtype)


def row_factors(problem: Problem, rows: Tensor) -> Tensor:
    """Scale / |w| of each of `rows` [n, D]: [n] accumulate dtype."""
    dtype = problem.accumulate_dtype
    wide = rows.double() if dtype == torch.float64 else rows
    norm = torch.linalg.vector_norm(wide, dim=1).to(dtype)
    return norm.clamp_min_(NORM_FLOOR).reciprocal_().mul_(problem.scale)


def mask_target(block: Tensor, owners: Owners, start: int, value: float) -> None:
    """Set block[target_i - start, i] = value for the samples whose own class lies in this block.

    `block` is [n, B], class-major, holding rows start..start+n-1.
    """
    places = owners.within(start, start + block.shape[0])
    if places.start < places.stop:
        block[owners.rows[places] - start, owners.samples[places]] = value


def finite(maximum: Tensor) -> Tensor:
    """-inf (no negatives at all) replaced by 0, so that exp(-inf - maximum) is 0 and not NaN."""
    return maximum.masked_fill(maximum == -torch.inf, 0.0)
