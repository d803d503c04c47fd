"""Classes that turned out to be one identity share a row; the other rows are parked.

A parked class is nobody's negative, and its samples train the row it was merged into. Merging only redirects
labels, so it can be undone at any time.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


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
        place = torch.searchsorted(self._parked, classes.contiguous()).clamp_max(
            len(self._parked) - 1
        )
        return torch.where(self._parked[place] == classes, self._kept[place], classes)

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
        return torch.tensor(sorted(flat, key=lambda pair: pair[1]), dtype=torch.int64).reshape(
            -1, 2
        )

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


def top(above: dict[int, int], one: int) -> int:
    """Where the way up from `one` ends; the way is shortened for the next time."""
    path = []
    while one in above:
        path.append(one)
        one = above[one]
    for passed in path[:-1]:
        above[passed] = one
    return one
