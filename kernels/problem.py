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

A problem may ask for more, and pays for it only then: K rows a class, of which the nearest speaks for the
class; another logit for hard negatives (E = exp(g(u) - shift), F = E g'(u) factor_c); and classes left out,
for everyone (`absent`) or sample by sample (`selection`). Positions of classes among the candidates run from
0 to `num_classes`; those of rows from 0 to R = K num_classes.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NORM_FLOOR = 1e-12  # as torch.nn.functional.normalize: a zero row stays zero instead of NaN


class Pairs:
    """Pairs of a class position and a sample, sorted by class: a block finds its own without a scan.

    Args:
        classes: int64 [P] class positions; negative ones belong to no block.
        samples: int64 [P]; default 0..P-1.

    Attributes:
        classes: int64 [P], sorted.
        samples: int64 [P], in that order.
    """

    def __init__(self, classes: Tensor, samples: Tensor | None = None) -> None:
        self.classes, order = torch.sort(classes)
        self.samples = order if samples is None else samples[order]
        self._host_classes = self.classes.tolist()  # read once to the host

    def within(self, start: int, stop: int) -> slice:
        """The places in `classes` and `samples` of class positions start..stop-1."""
        return slice(bisect_left(self._host_classes, start), bisect_left(self._host_classes, stop))

    def fill(self, block: Tensor, start: int, value: float | bool) -> None:
        """Set block[class - start, sample] for the pairs in a block [n, B] of classes start..start+n-1."""
        places = self.within(start, start + block.shape[0])
        if places.start < places.stop:
            block[self.classes[places] - start, self.samples[places]] = value


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """Another logit where the cosine z exceeds the sample's threshold: s (v0 + v1 z + v2 z^2).

    Elsewhere `easy` s z. Value and slope are given apart: a weight in front of z may be held constant.
    """

    threshold: Tensor
    """[B] cosine."""
    value: tuple[float, float, float]
    """(v0, v1, v2)."""
    slope: tuple[float, float]
    """(d0, d1): the logit's derivative by z is s (d0 + d1 z)."""
    easy: float = 1.0
    """Factor of the other negatives' logit s z, and of its derivative."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which candidates are negatives of which sample where there are several data sets (baskets).

    A class shares a basket with a sample where their member bits overlap: it is always a negative. Of the
    other classes, those at or above the sample's limit and the dropped pairs are left out; or, where `kept`
    is given, all but those pairs.
    """

    class_members: Tensor
    """int64 [num_classes]: bit b is set where the class belongs to basket b."""
    sample_members: Tensor
    """int64 [B], likewise."""
    limit: Tensor | None = None
    """[B] cosine, or None: no limit."""
    dropped: Pairs | None = None
    """Pairs (class position, sample) of other baskets."""
    kept: Pairs | None = None
    """Pairs (class position, sample) of other baskets."""

    def others(self, start: int, stop: int) -> Tensor:
        """Bool [n, B]: classes start..stop-1 that share no basket with the sample."""
        return (self.class_members[start:stop, None] & self.sample_members) == 0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One batch against one shard's candidate rows."""

    features: Tensor
    """v [B, D] in the compute dtype: unit features, times the sample's own scale if it has one."""
    rows: Tensor
    """[R, D] rows as stored (float64, float32 or bfloat16), not normalised; a class's follow each other."""
    scale: float
    """Dimensionless factor on the cosine."""
    target: Tensor
    """int64 [B]: position of the sample's own class among the candidates, or -1 where it is not one here."""
    shift: float | None
    """Constant subtracted from every exponent, or None: keep a running maximum per sample."""
    num_centres: int = 1
    """K: rows of a class."""
    feature_scale: Tensor | None = None
    """[B]: the sample's own scale within `features`; None: 1."""
    hard: HardNegatives | None = None
    """Another logit for hard negatives."""
    selection: Selection | None = None
    """Which classes of other baskets count."""
    absent: Tensor | None = None
    """Bool [num_classes]: classes that are nobody's negatives; None: no such class."""

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """float64 for float64 features, else float32: sums are never kept in bfloat16."""
        return torch.float64 if self.features.dtype == torch.float64 else torch.float32

    @property
    def num_rows(self) -> int:
        """R."""
        return self.rows.shape[0]

    @property
    def num_classes(self) -> int:
        """Candidate classes of this shard."""
        return self.rows.shape[0] // self.num_centres

    @property
    def batch(self) -> int:
        """B."""
        return self.features.shape[0]

    @property
    def is_plain(self) -> bool:
        """Whether every candidate but the own class is a negative with logit s z."""
        return (
            self.num_centres == 1
            and self.hard is None
            and self.selection is None
            and self.absent is None
        )

    @cached_property
    def own(self) -> Pairs:
        """Which samples' own classes lie where."""
        return Pairs(self.target)

    @cached_property
    def cosine_unit(self) -> Tensor:
        """[B] or []: what a logit u is divided by to give the cosine."""
        dtype = self.accumulate_dtype
        if self.feature_scale is None:
            return torch.tensor(self.scale, dtype=dtype, device=self.features.device)
        return self.feature_scale.to(dtype).clamp_min(NORM_FLOOR) * self.scale


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Per-sample sums beside `total`, each [B] accumulate dtype; None where the problem does not ask."""

    hard_sum: Tensor | None = None
    """Sum of the hard negatives' cosines."""
    hard_count: Tensor | None = None
    """Their number."""
    rejected: Tensor | None = None
    """Candidates of other baskets that were left out."""
    mined: Tensor | None = None
    """Candidates of other baskets that count."""

    def stacked(self) -> Tensor | None:
        """Those that exist, [k, B], in the order of the fields; None where there are none."""
        parts = [part for part in vars(self).values() if part is not None]
        return torch.stack(parts) if parts else None

    def restored(self, values: Tensor | None) -> "Counts":
        """The same fields with the values [k, B] of `stacked`, summed over shards."""
        if values is None:
            return self
        names = [name for name, part in vars(self).items() if part is not None]
        return Counts(**dict(zip(names, values, strict=True)))


def no_counts(problem: Problem) -> Counts:
    """Zeros for what the problem asks."""

    def zeros() -> Tensor:
        return torch.zeros(
            problem.batch, dtype=problem.accumulate_dtype, device=problem.features.device
        )

    hard = {} if problem.hard is None else {"hard_sum": zeros(), "hard_count": zeros()}
    mined = {} if problem.selection is None else {"rejected": zeros(), "mined": zeros()}
    return Counts(**hard, **mined)


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
    """[k, B] compute dtype, class-major: what the kernel keeps of the first k rows to form F again; rows past
    k are recomputed."""
    counts: Counts
    """What the problem's further wishes came to."""

    @property
    def kept_bytes(self) -> int:
        """Bytes held until the class gradient is taken."""
        return 0 if self.kept is None else self.kept.numel() * self.kept.element_size()


OnSums = Callable[[Swept], None]
"""Told of an answer whose total, maximum and counts are final, while `pull` may still be missing its end."""


def ignored(swept: Swept) -> None:
    """The OnSums of whoever waits for the whole answer."""


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
    wide = torch.promote_types(rows.dtype, dtype)
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=wide).to(dtype)
    return norm.clamp_min_(NORM_FLOOR).reciprocal_().mul_(problem.scale)


def finite(maximum: Tensor) -> Tensor:
    """-inf (no negatives at all) replaced by 0, so that exp(-inf - maximum) is 0 and not NaN."""
    return maximum.masked_fill(maximum == -torch.inf, 0.0)
