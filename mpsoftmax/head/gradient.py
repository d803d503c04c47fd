"""The class gradient, formed tile by tile from what the backward calls of a step left.

Accumulation over several backward calls is addition of their tiles; with sampled candidates each call has
rows of its own, and the tiles run over the union of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsoftmax.head.derivatives import Reduced
from mpsoftmax.kernels.problem import Swept, weigh
from mpsoftmax.kernels.select import Kernel


@dataclass(frozen=True)
class Contribution:
    """What one backward call leaves for step(): enough to form the class gradient tile by tile."""

    index: Tensor | None
    """Sorted local candidate rows, None for all."""
    swept: Swept
    unit: Tensor
    """[n, D] accumulate dtype: unit features."""
    negatives: Tensor
    """[n]: dL/dl over the (shard-relative) total: multiplies E."""
    target: Tensor
    """[n]: dL/dt: multiplies the target row's feature."""


class TileSource:
    """One contribution's class gradient, addressed by tiles of the union of all contributions' rows."""

    def __init__(self, kernel: Kernel, part: Contribution, union: Tensor | None) -> None:
        self._kernel, self._part = kernel, part
        self._same = union is None or part.index is None or part.index is union
        self._union = union
        self._weighted = weigh(part.swept, part.negatives)
        self._owners = part.swept.problem.owners
        self._pulls = target_pulls(part)

    def write(self, start: int, stop: int, out: Tensor, *, add: bool) -> None:
        """Write (or add) the gradient by rows start..stop-1 of the union into `out` [n, D].

        Their norm counts as constant: the class table projects onto the tangent space.
        """
        if self._same:
            first, last, places = start, stop, None
        else:
            first, last, places = self._overlap(start, stop)
        direct = places is None and not add
        tile = out if direct else out.new_empty(last - first, out.shape[1])
        tile = tile.to(self._part.unit.dtype)
        self._kernel.class_gradient(self._part.swept, self._weighted, first, last, tile)
        self._add_targets(first, last, tile)
        if direct:
            if tile is not out:
                out.copy_(tile)
            return
        if not add:
            out.zero_()
        if places is None:
            out += tile
        else:
            out.index_add_(0, places, tile.to(out.dtype))

    def _overlap(self, start: int, stop: int) -> tuple[int, int, Tensor]:
        """Own candidates among union rows start..stop-1: their range, and their places in the tile."""
        assert self._union is not None
        assert self._part.index is not None
        ids = self._union[start:stop]
        bounds = torch.searchsorted(self._part.index, torch.stack([ids[0], ids[-1] + 1])).tolist()
        places = torch.searchsorted(ids, self._part.index[bounds[0] : bounds[1]])
        return bounds[0], bounds[1], places

    def _add_targets(self, first: int, last: int, tile: Tensor) -> None:
        """Add the pulls of the samples whose own class lies in these rows."""
        places = self._owners.within(first, last)
        if places.start < places.stop:
            tile.index_add_(0, self._owners.rows[places] - first, self._pulls[places])


def target_pulls(part: Contribution) -> Tensor:
    """[n, D] dL/dt x_i / |w| on its own class's row, in the order of `problem.owners`; 0 if not here."""
    problem, factor = part.swept.problem, part.swept.factor
    rows, samples = problem.owners.rows, problem.owners.samples
    if problem.num_rows == 0:
        return torch.zeros_like(part.unit)
    weight = part.target[samples] * factor[rows.clamp_min(0)] / problem.scale
    return part.unit[samples] * weight.masked_fill(rows < 0, 0.0)[:, None]


def coefficients(swept: Swept, reduced: Reduced, by_negatives: Tensor) -> Tensor:
    """[n] what multiplies this shard's E: dL/dl over the total, relative to the shard's own maximum.

    0/0 where a sample has no negatives at all, or none in this shard: exactly zero.
    """
    relative, any_here = reduced.total, reduced.total > 0
    if swept.maximum is not None:
        relative = reduced.total * torch.exp(reduced.maximum - swept.maximum)
        any_here = swept.total > 0
    return torch.where(any_here, by_negatives / relative, torch.zeros_like(relative))


def row_norms(parts: list[Contribution], union: Tensor | None) -> Tensor:
    """[n] norms of the union's rows, as the sweeps found them."""
    norms = [part.swept.problem.scale / part.swept.factor for part in parts]
    if union is None or parts[0].index is union:
        return norms[0]
    out = norms[0].new_empty(union.numel())
    for part, norm in zip(parts, norms, strict=True):
        assert part.index is not None
        out[torch.searchsorted(union, part.index)] = norm
    return out


def union_of(indices: list[Tensor | None]) -> Tensor | None:
    """Sorted union of sorted row indices; None (all rows) if any is None."""
    if any(index is None for index in indices):
        return None
    if len(indices) == 1:
        return indices[0]
    return torch.unique(torch.cat([index for index in indices if index is not None]))
