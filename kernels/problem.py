"""What a sweep over class rows is asked and what it answers: the types every kernel shares.

Legend: B samples, D embedding dimension, R candidate rows of this rank. A kernel sees one shard and
no process group; it knows neither margins nor objectives. With u_ic = scale * <v_i, w_c / |w_c|>,
E_ic = exp(u_ic - shift) for every candidate row c that is not the sample's own class, else 0:

    sweep           total_i = sum_c E_ic          pull_i = sum_c E_ic * scale * w_c / |w_c|
    class_gradient  out_c   = sum_i E_ic * weighted_i,     weighted_i = coefficient_i * scale * v_i

The sums are left unnormalised: the normaliser needs the other shards and goes into the coefficients, vectors
of length B, never into the B x R matrix.
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
    """Dimensionless factor on the cosine; folded into the normalised rows (one rounding, no pass)."""
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
    """

    def __init__(self, target: Tensor) -> None:
        self._rows, self._samples = torch.sort(target)
        self._host_rows = self._rows.tolist()

    def within(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """(rows - start, samples), each int64 [k], of own classes in start..stop-1; None if k = 0."""
        low, high = bisect_left(self._host_rows, start), bisect_left(self._host_rows, stop)
        if low == high:
            return None
        return self._rows[low:high] - start, self._samples[low:high]


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
    kept: Tensor | None
    """[K, B] compute dtype, class-major: E of the first K rows (plain logits u with a running maximum);
    rows past K are recomputed."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of E held until the class gradient is taken."""
        return 0 if self.kept is None else self.kept.numel() * self.kept.element_size()


def weigh(swept: Swept, coefficient: Tensor) -> Tensor:
    """Features as `class_gradient` takes them: coefficient_i * scale * v_i, [B, D] compute dtype.

    Args:
        swept: What `sweep` returned.
        coefficient: [B] accumulate dtype, dL/d log(total) over `swept.total`'s own shift.
    """
    factor = (coefficient * swept.problem.scale)[:, None]
    features = swept.problem.features
    return (features.to(coefficient.dtype) * factor).to(features.dtype)


def unit_rows(problem: Problem, start: int, stop: int, out: Tensor | None = None) -> Tensor:
    """Rows start..stop-1, normalised, times `scale`, in the compute dtype: [stop-start, D].

    The norm is taken in the accumulate dtype, so that bfloat16 rounds once, at the end.
    """
    rows = problem.rows[start:stop]
    if problem.accumulate_dtype == torch.float64:
        rows = rows.double()
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    factor = norm.clamp_min_(NORM_FLOOR).reciprocal_().mul_(problem.scale)
    if out is None:
        return (rows * factor).to(problem.features.dtype)
    return torch.mul(rows, factor, out=out)


def mask_target(block: Tensor, owners: Owners, start: int, value: float) -> None:
    """Set block[target_i - start, i] = value for the samples whose own class lies in this block.

    `block` is [n, B], class-major, holding rows start..start+n-1.
    """
    places = owners.within(start, start + block.shape[0])
    if places is not None:
        block[places] = value
