"""Products of per-step matrices over any stretch of the past: exact catch-up of untouched rows.

A row left out since step a must be multiplied by A_{n-1} ... A_{a+1} A_a. Dividing stored prefix products
does not work: det A = momentum, so the inverse blows up. Instead the products of all
aligned runs of 2^j steps are kept, and a stretch is put together from at most 2 log2(n) of them. Only
multiplications of contractions occur, so the error stays at rounding after any number of steps.
"""

import numpy as np


class StepHistory:
    """Append-only list of [k, k] float64 matrices with interval products; 2 matrices a step."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._levels: list[list[np.ndarray]] = [[]]

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, matrix: np.ndarray) -> None:
        """Add the next step's matrix; amortised O(1)."""
        level, product = 0, matrix
        while True:
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(product)
            if len(self._levels[level]) % 2:
                return
            product = self._levels[level][-1] @ self._levels[level][-2]
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
            factors = np.stack([self._levels[level][p] for p in position[fits] // run])
            product[fits] = factors @ product[fits]
            position[fits] += run
        return product
