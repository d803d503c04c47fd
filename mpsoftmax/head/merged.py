"""Classes that turned out to be one identity share a row; the other rows are parked.

A parked class is nobody's negative, and its samples train the row it was merged into. Merging only redirects
labels, so it can be undone at any time.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mpsoftmax.head.sorted_ids import place_of
from mpsoftmax.kernels.problem import NORM_FLOOR


class MergedClasses:
    """Which class stands for which: the same on all ranks.

    Attributes:
        pairs: int64 [M, 2] (class that keeps its row, parked class), sorted by the parked one; on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.set(torch.empty(0, 2, dtype=torch.int64))

    def set(self, pairs: Tensor) -> None:
        """Replace all pairs."""
        pairs = pairs.to("cpu", torch.int64).reshape(-1, 2)
        self.pairs = pairs[pairs[:, 1].argsort()]
        self._kept = self.pairs[:, 0].contiguous().to(self._device)
        self._parked = self.pairs[:, 1].contiguous().to(self._device)

    def canonical(self, classes: Tensor) -> Tensor:
        """The class that stands for each: int64, any shape."""
        if not len(self._parked):
            return classes
        place = place_of(classes, self._parked)
        return torch.where(place >= 0, self._kept[place.clamp_min(0)], classes)

    def kept(self) -> Tensor:
        """int64 [M] the class that stands for each parked one."""
        return self._kept

    def parked(self) -> Tensor:
        """int64 [M] parked class ids, sorted."""
        return self._parked

    def joined(self, pairs: Iterable[tuple[int, int]]) -> Tensor:
        """The pairs with more merged: of each new pair the first keeps its row, chains included.

        A pair that is one class already changes nothing.

        Raises:
            ValueError: a pair names one class twice.
        """
        above = {parked: kept for kept, parked in self.pairs.tolist()}
        for keep, park in pairs:
            if keep == park:
                raise ValueError(f"pairs: class {keep} with itself; allowed: two different classes")
            keep, park = top(above, keep), top(above, park)
            if keep != park:
                above[park] = keep
        flat = [(top(above, parked), parked) for parked in above]
        flat.sort(key=lambda pair: pair[1])
        return torch.tensor(flat, dtype=torch.int64).reshape(-1, 2)

    def without(self, parked: Tensor) -> Tensor:
        """The pairs without some parked classes.

        Raises:
            ValueError: one of them is not parked.
        """
        parked = parked.to("cpu")
        strange = parked[~torch.isin(parked, self.pairs[:, 1])]
        if len(strange):
            raise ValueError(
                f"ids: {int(strange[0])} is not merged into another class; allowed: parked ones"
            )
        return self.pairs[~torch.isin(self.pairs[:, 1], parked)]


def shared_rows(rows: Tensor, seen: Tensor, place: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """One row for each group of classes: their mean direction, as long as their mean.

    Args:
        rows: [n, ..., D] rows of the classes.
        seen: bool [n]: those that count.
        place: int64 [n]: each class's group, 0..m-1.
        kept: int64 [m]: where in `rows` each group's own class stands: its direction serves where the others
            cancel it.

    Returns:
        [m, ..., D], and bool [m]: groups of which any class counts.
    """
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    units = rows / norms.clamp_min(NORM_FLOOR)
    weight = seen.to(rows).view(-1, *[1] * (rows.ndim - 1))

    def by_group(values: Tensor) -> Tensor:
        return torch.zeros_like(values[: len(kept)]).index_add_(0, place, values * weight)

    direction, counts = by_group(units), by_group(torch.ones_like(norms))
    opposed = torch.linalg.vector_norm(direction, dim=-1, keepdim=True) < NORM_FLOOR
    direction = torch.where(opposed, units[kept], direction)
    length = by_group(norms) / counts.clamp_min(1.0)
    return nn.functional.normalize(direction, dim=-1) * length, counts.view(len(kept), -1)[:, 0] > 0


def top(above: dict[int, int], one: int) -> int:
    """Where the way up from `one` ends; the way is shortened for the next time."""
    path = []
    while one in above:
        path.append(one)
        one = above[one]
    for passed in path[:-1]:
        above[passed] = one
    return one
