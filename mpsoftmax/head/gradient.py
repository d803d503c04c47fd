"""The class gradient, formed tile by tile from what the backward calls of a step left.

Accumulation over several backward calls is addition of their tiles; with sampled candidates each call has
rows of its own, and the tiles run over the union of them and of the samples' own rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpsoftmax.head.derivatives import Reduced
from mpsoftmax.head.targets import Targets
from mpsoftmax.kernels.problem import NORM_FLOOR, Pairs, Swept, weigh
from mpsoftmax.kernels.select import Kernel


@dataclass(frozen=True)
class Contribution:
    """What one backward call leaves for step(): enough to form the class gradient tile by tile."""

    index: Tensor | None
    """Sorted local rows that were swept, None for all."""
    swept: Swept
    chosen: Tensor | None
    """int64 [m] samples that met their negatives; None: all n."""
    unit: Tensor
    """[n, D] accumulate dtype: unit features."""
    norm: Tensor
    """[n] feature norms."""
    targets: Targets
    negatives: Tensor
    """[m]: dL/dl over the (shard-relative) total: multiplies E."""
    target: Tensor
    """[n]: dL/dt: multiplies the target row's feature."""
    swept_own: bool
    """Whether the samples' own rows are among those swept."""

    def scaled(self, factor: Tensor | float) -> "Contribution":
        """As a factor on the loss would have left it."""
        return replace(self, negatives=self.negatives * factor, target=self.target * factor)


class TileSource:
    """One contribution's class gradient, addressed by tiles of the union of all contributions' rows."""

    def __init__(self, kernel: Kernel, part: Contribution, union: Tensor | None) -> None:
        self._kernel, self._part = kernel, part
        self._same = union is None or part.index is None or part.index is union
        self._union = union
        self._weighted = weigh(part.swept, part.negatives)
        place = part.targets.row
        if union is not None and union.numel():
            place = torch.where(place >= 0, torch.searchsorted(union, place), -1)
        self._owners = Pairs(place)
        weight = part.target / part.targets.norm.clamp_min(NORM_FLOOR)
        self._pulls = part.unit * weight[:, None]

    def write(self, start: int, stop: int, out: Tensor, *, add: bool) -> None:
        """Write (or add) the gradient by rows start..stop-1 of the union into `out` [n, D].

        Their norm counts as constant: the class table projects onto the tangent space.
        """
        if self._same and not add and out.dtype == self._part.unit.dtype:
            self._kernel.class_gradient(self._part.swept, self._weighted, start, stop, out)
        else:
            self._write_apart(start, stop, out, add=add)
        places = self._owners.within(start, stop)
        if places.start < places.stop:
            pulls = self._pulls[self._owners.samples[places]].to(out.dtype)
            out.index_add_(0, self._owners.classes[places] - start, pulls)

    def _write_apart(self, start: int, stop: int, out: Tensor, *, add: bool) -> None:
        first, last, places = (start, stop, None) if self._same else self._overlap(start, stop)
        tile = self._part.unit.new_empty(last - first, out.shape[1])
        self._kernel.class_gradient(self._part.swept, self._weighted, first, last, tile)
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


def pending_gradient(
    kernel: Kernel, parts: list[Contribution]
) -> tuple[Tensor | None, Tensor, Callable[[int, int, Tensor], Tensor]]:
    """Rows that the gradient of a step reaches (None: all), their norms [n], and what writes a tile of it."""
    union = union_of(parts)
    sources = [TileSource(kernel, part, union) for part in parts]

    def write(start: int, stop: int, out: Tensor) -> Tensor:
        for number, source in enumerate(sources):
            source.write(start, stop, out, add=number > 0)
        return out

    return union, row_norms(parts, union), write


def coefficients(swept: Swept, reduced: Reduced, by_negatives: Tensor) -> Tensor:
    """[m] what multiplies this shard's E: dL/dl over the total, relative to the shard's own maximum.

    0/0 where a sample has no negatives at all, or none in this shard: exactly zero.
    """
    relative, any_here = reduced.total, reduced.total > 0
    if swept.maximum is not None:
        relative = reduced.total * torch.exp(reduced.maximum - swept.maximum)
        any_here = swept.total > 0
    return torch.where(any_here, by_negatives / relative, torch.zeros_like(relative))


def row_norms(parts: list[Contribution], union: Tensor | None) -> Tensor:
    """[n] norms of the union's rows, as the sweeps and the targets found them."""
    norms = [part.swept.problem.scale / part.swept.factor for part in parts]
    if union is None or parts[0].index is union:
        return next(n for n, p in zip(norms, parts, strict=True) if p.index is union)
    out = norms[0].new_empty(union.numel())
    for part, norm in zip(parts, norms, strict=True):
        assert part.index is not None
        out[torch.searchsorted(union, part.index)] = norm
        rows, own_norms = part.targets.class_rows()
        out[torch.searchsorted(union, rows)] = own_norms.to(out)
    return out


def union_of(parts: list[Contribution]) -> Tensor | None:
    """Sorted union of the rows that some part's gradient reaches; None (all rows) if any sweeps all."""
    if any(part.index is None for part in parts):
        return None
    if len(parts) == 1 and parts[0].swept_own:
        return parts[0].index
    indices = [part.index for part in parts if part.index is not None]
    own = [part.targets.class_rows()[0] for part in parts]  # all rows of a class move, or none
    return torch.unique(torch.cat([*indices, *own]))
