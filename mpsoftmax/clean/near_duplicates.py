"""Images that are nearly the same picture: near in embedding, and then in pixels.

Embeddings propose (the nearest images above a cosine, exact, by blocks); pixels decide: the correlation of
small grey pictures, which a re-encoding, a resize or a change of brightness leaves near 1 and another
photograph of the same person does not.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mpsoftmax.clean.centres import BLOCK_IMAGES

NEIGHBOURS = 4
LEAST_COSINE = 0.9
LEAST_CORRELATION = 0.97
SIDE = 24
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, of R, G, B


def near_pairs(
    unit: Tensor, threshold: float = LEAST_COSINE, num: int = NEIGHBOURS
) -> list[tuple[int, int]]:
    """Pairs (i < j) of which one is among the other's `num` nearest and at or above a cosine; exact.

    Args:
        unit: float32 [n, D] unit embeddings.
        threshold: Least cosine.
        num: Neighbours looked at.
    """
    pairs: set[tuple[int, int]] = set()
    for low in range(0, len(unit), BLOCK_IMAGES):
        rows = torch.arange(low, min(low + BLOCK_IMAGES, len(unit)))
        values = torch.full((len(rows), num), -torch.inf)
        ids = torch.zeros(len(rows), num, dtype=torch.int64)
        for first in range(0, len(unit), BLOCK_IMAGES):
            block = torch.arange(first, min(first + BLOCK_IMAGES, len(unit)))
            cosine = unit[rows] @ unit[block].T
            cosine[rows[:, None] == block[None]] = -torch.inf
            values, order = torch.cat([values, cosine], 1).topk(num, dim=1)
            ids = torch.cat([ids, block.expand(len(rows), -1)], 1).gather(1, order)
        for row, column in torch.nonzero(values >= threshold).tolist():
            a, b = low + row, int(ids[row, column])
            pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [576]: small, grey, mean 0, length 1; zeros where there is no contrast."""
    grey = Image.fromarray((pixels @ _LUMA).round().clip(0, 255).astype(np.uint8))
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    return small / length if length > 1.0 else np.zeros_like(small)


def same_pictures(
    pairs: list[tuple[int, int]],
    pixels: Callable[[int], np.ndarray],
    threshold: float = LEAST_CORRELATION,
) -> list[tuple[int, int, float]]:
    """Those of the pairs whose small grey pictures correlate: (i, j, correlation).

    Args:
        pairs: Sorted, so that each first image is read once.
        pixels: Reads and decodes an image: uint8 [H, W, 3].
        threshold: Least correlation.
    """
    kept: dict[int, np.ndarray] = {}
    found = []
    for a, b in pairs:
        for one in (a, b):
            if one not in kept:
                kept[one] = small_grey(pixels(one))
        correlation = float(kept[a] @ kept[b])
        if correlation >= threshold:
            found.append((a, b, correlation))
    return found
