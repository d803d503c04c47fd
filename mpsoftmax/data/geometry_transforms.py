"""Augmentations that move pixels: flip, crop, affine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mpsoftmax.data.pixel_memory import empty_planes, pixelwise
from mpsoftmax.data.transform_checks import check_colour, check_share, is_number, require


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirrors left and right.

    Attributes:
        p: probability.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_share("p", self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Applies it: uint8 [H, W, 3] to the same."""
        return image[:, ::-1] if rng.random() < self.p else image


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Pads all sides, then cuts the original size at a random place.

    Attributes:
        pad: border in pixels.
        fill: colour of the border, RGB 0..255.
    """

    pad: int = 4
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        require(type(self.pad) is int and self.pad >= 1, "pad", self.pad, "an integer >= 1")
        check_colour("fill", self.fill)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Applies it: uint8 [H, W, 3] to the same."""
        height, width = image.shape[:2]
        down, right = rng.integers(-self.pad, self.pad + 1, size=2).tolist()
        out = empty_planes(image.shape)
        out[:] = np.array(self.fill, np.uint8)
        if abs(down) < height and abs(right) < width:
            rows, columns = slice(max(down, 0), height + down), slice(max(right, 0), width + right)
            from_rows, from_columns = slice(max(-down, 0), None), slice(max(-right, 0), None)
            target = out[rows, columns]
            target[:] = image[from_rows, from_columns][: target.shape[0], : target.shape[1]]
        return out


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Shifts, zooms and turns around the middle.

    Attributes:
        p: probability.
        shift: largest shift down and right, as a share of height and width, in [0, 1].
        zoom: largest relative change of size, in [0, 1).
        rotation_rad: largest angle in radians, either way, in [0, pi].
        fill: colour of what comes into view, RGB 0..255.
    """

    p: float = 1.0
    shift: float = 0.05
    zoom: float = 0.1
    rotation_rad: float = 0.1
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        check_share("p", self.p)
        check_share("shift", self.shift)
        require(is_number(self.zoom) and 0 <= self.zoom < 1, "zoom", self.zoom, "in [0, 1)")
        turned = is_number(self.rotation_rad) and 0 <= self.rotation_rad <= math.pi
        require(turned, "rotation_rad", self.rotation_rad, "an angle in [0, pi] radians")
        check_colour("fill", self.fill)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Applies it: uint8 [H, W, 3] to the same."""
        chance = rng.random()
        down, right, size, turn = rng.uniform(-1, 1, 4).tolist()
        if chance >= self.p:
            return image
        height, width = image.shape[:2]
        angle, scale = turn * self.rotation_rad, 1 + size * self.zoom
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        # Pillow wants the map from output to input pixels; the middle goes to the shifted middle.
        to_x = width / 2 + right * self.shift * width
        to_y = height / 2 + down * self.shift * height
        inverse = (
            *(cos, sin, width / 2 - cos * to_x - sin * to_y),
            *(-sin, cos, height / 2 + sin * to_x - cos * to_y),
        )
        picture = Image.fromarray(pixelwise(image)).transform(
            (width, height),
            Image.Transform.AFFINE,
            inverse,
            resample=Image.Resampling.BILINEAR,
            fillcolor=tuple(self.fill),
        )
        return np.asarray(picture)
