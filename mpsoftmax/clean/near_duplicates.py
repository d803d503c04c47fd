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

from mpsoftmax.evaluate.search import search

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
    found = search(unit, unit, min(num + 1, len(unit)), metric="inner")
    others = found.index != torch.arange(len(unit))[:, None]
    near = others & (others.cumsum(1) <= num) & (found.similarity >= threshold)
    rows, places = torch.nonzero(near, as_tuple=True)
    nearest = found.index[rows, places]
    pairs = set(zip(rows.tolist(), nearest.tolist(), strict=True))
    return sorted({(min(pair), max(pair)) for pair in pairs})


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
