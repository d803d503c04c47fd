"""Stochastic rounding of float32 to bfloat16, keyed by what is rounded and not by who does it.

An update smaller than half a unit in the last place would be lost by rounding to nearest, always; rounding up
with the probability of the remainder keeps it in expectation (Gupta et al., 2015). The draw is a function of
(seed, step, row id, column): resuming, tiling, world size and storage do not change it.
"""

import numpy as np
import torch
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: uint64 in, uint64 out, a bijection without visible structure."""
    with np.errstate(over="ignore"):
        x = numbers + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class StochasticRounding:
    """One step's draws for some rows.

    A row's multiplier and a column's multiplier, both odd and hashed, give a product whose upper 16 bits are
    the draw (multiply-shift hashing, Dietzfelbinger et al., 1997): one pass over the tile.

    Args:
        seed: Key.
        step: Key.
        ids: int64 [n] row ids over all ranks.
        dim: D.
    """

    def __init__(self, seed: int, step: int, ids: Tensor, dim: int) -> None:
        self._key = mixed(np.array([seed], np.uint64) ^ mixed(np.array([step], np.uint64)))
        self._ids, self._device = ids.cpu().numpy().astype(np.uint64), ids.device
        self._columns = odd(mixed(np.arange(dim, dtype=np.uint64)), ids.device)

    def __call__(self, part: int, low: int, high: int, wide: Tensor) -> Tensor:
        """A tile as bfloat16. Non-finite values stay.

        Args:
            part: Which tensor of a row, weight or state: each has draws of its own.
            low: The tile's first row.
            high: One past its last.
            wide: float32 [high - low, D].
        """
        rows = mixed(self._ids[low:high] ^ self._key)
        draw = odd(mixed(rows + np.uint64(part)), self._device)[:, None] * self._columns
        draw >>= 16  # arithmetic: from -2^15 on
        draw += 1 << 15
        draw += wide.contiguous().view(torch.int32)
        # The upper half of the sum: the second int16 of each pair, little-endian as all our targets.
        rounded = draw.view(torch.int16)[:, 1::2].view(torch.bfloat16)
        return rounded.masked_fill(wide.isnan(), torch.nan)  # a NaN of all ones overflows to -0


def odd(hashed: np.ndarray, device: torch.device) -> Tensor:
    """Lower 32 bits as odd int32 on a device."""
    low = (hashed & np.uint64(0xFFFFFFFF)).astype(np.uint32) | np.uint32(1)
    return torch.from_numpy(low.view(np.int32)).to(device)
