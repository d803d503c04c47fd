"""Products of per-step matrices over any stretch of the past: exact catch-up of untouched rows.

A row left out since step a must be multiplied by A_{n-1} ... A_{a+1} A_a. Dividing stored prefix products
does not work: det A = momentum, so the inverse blows up. Instead the products of all
aligned runs of 2^j steps are kept, and a stretch is put together from at most 2 log2(n) of them. Only
multiplications of contractions occur, so the error stays at rounding after any number of steps.
"""

import numpy as np
import torch
from torch import Tensor


class GrowingArray:
    """Append-only float64 array of rows of one shape; doubles when full."""

    def __init__(self, *shape: int) -> None:
        self._room = np.empty((4, *shape))
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def append(self, row: np.ndarray) -> None:
        """Add one."""
        self.extend(row[None])

    def extend(self, rows: np.ndarray) -> None:
        """Add several, [n, ...]."""
        last = self._num + len(rows)
        if last > len(self._room):
            larger = np.empty((max(last, 2 * len(self._room)), *self._room.shape[1:]))
            larger[: self._num] = self[:]
            self._room = larger
        self._room[self._num : last] = rows
        self._num = last

    def __getitem__(self, place: int | slice | np.ndarray) -> np.ndarray:
        """A row, or several."""
        return self._room[: self._num][place]


class StepHistory:
    """Append-only list of [k, k] float64 matrices with interval products; 2 matrices a step."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._levels = [GrowingArray(size, size)]

    @classmethod
    def of(cls, matrices: np.ndarray) -> "StepHistory":
        """What appending [n, k, k] one by one gives, level by level."""
        history = cls(matrices.shape[1])
        history._levels[0].extend(matrices)
        while len(matrices) > 1:
            even = len(matrices) // 2 * 2
            matrices = matrices[1:even:2] @ matrices[:even:2]
            history._levels.append(GrowingArray(*matrices.shape[1:]))
            history._levels[-1].extend(matrices)
        return history

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, matrix: np.ndarray) -> None:
        """Add the next step's matrix; amortised O(1)."""
        level, product = 0, matrix
        while True:
            if level == len(self._levels):
                self._levels.append(GrowingArray(self._size, self._size))
            runs = self._levels[level]
            runs.append(product)
            if len(runs) % 2:
                return
            product = runs[len(runs) - 1] @ runs[len(runs) - 2]
            level += 1

    def since(self, start: np.ndarray) -> np.ndarray:
        """Products of the steps start..now-1, latest on the left.

        Args:
            start: int64 [u], each in [0, len(self)].

        Returns:
            float64 [u, k, k]; the identity where start == len(self).
        """
        position = start.astype(np.int64).copy()
        product = np.broadcast_to(np.eye(self._size), (start.size, self._size, self._size)).copy()
        last = len(self)
        climbing = range(len(self._levels))
        for level in [*climbing, *reversed(climbing)]:
            run = 1 << level
            # Climb while the position is not aligned to the next level, then descend what is left.
            aligned = position % run == 0
            fits = aligned & (position + run <= last)
            fits &= (position % (2 * run) != 0) | (position + 2 * run > last)
            if not fits.any():
                continue
            product[fits] = self._levels[level][position[fits] // run] @ product[fits]
            position[fits] += run
        return product


class CatchUp:
    """The steps that some rows missed, as one small matrix a row.

    Args:
        history: All steps so far.
        row_step: int64 [n]: the step each row is current to.
        dtype: Of the rows to be moved.
    """

    def __init__(self, history: StepHistory, row_step: Tensor, dtype: torch.dtype) -> None:
        starts, inverse = np.unique(row_step.cpu().numpy(), return_inverse=True)
        products = history.since(starts)
        self._used: np.ndarray = np.any(products, axis=0)  # moments of AdamW do not enter the row
        factors = torch.from_numpy(products).to(row_step.device, dtype)
        self._factors = factors[torch.from_numpy(inverse).to(row_step.device)]

    def __call__(self, out: int, parts: list[Tensor], low: int, high: int) -> Tensor:
        """Part `out` (0: the row, then its states) of rows low..high-1 as of now: [n, D].

        Args:
            out: Which part.
            parts: [row, *states] of these rows as stored, each [high - low, D]; not changed.
            low: First row.
            high: One past the last row.
        """
        moved = None
        for other, part in enumerate(parts):
            if self._used[out, other]:
                factor = self._factors[low:high, out, other, None]
                moved = part * factor if moved is None else moved.addcmul_(part, factor)
        return torch.zeros_like(parts[out]) if moved is None else moved
