"""How the bytes of an image uint8 [H, W, 3] lie: pixel after pixel, or plane after plane.

Decoders and Pillow have them pixel after pixel, batches plane after plane. numpy copies between the two, and
mirrored images, three bytes at a time unless told to go channel by channel: eight times slower.
"""

from __future__ import annotations

import numpy as np


def planes_of(image: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
    """A copy of an image [H, W, 3] whose bytes lie plane after plane: `dtype` [3, H, W], contiguous."""
    height, width, channels = image.shape
    planes = np.empty((channels, height, width), dtype)
    planes[...] = image.transpose(2, 0, 1)
    return planes


def empty_planes(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [H, W, 3] to be filled, whose bytes lie plane after plane."""
    height, width, channels = shape
    return np.empty((channels, height, width), np.uint8).transpose(1, 2, 0)


def pixelwise(image: np.ndarray) -> np.ndarray:
    """The image uint8 [H, W, 3] with its bytes pixel after pixel, as Pillow wants them; a copy if need be."""
    if image.flags.c_contiguous:
        return image
    out = np.empty(image.shape, image.dtype)
    for channel in range(image.shape[2]):
        out[:, :, channel] = image[:, :, channel]
    return out
