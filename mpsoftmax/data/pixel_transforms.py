"""Augmentations that change what pixels show: erasing, colour, low resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

from mpsoftmax.data.pixel_memory import pixelwise, planes_of
from mpsoftmax.data.transform_checks import check_colour, check_interval, check_share

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG and Pillow


@dataclass(frozen=True, kw_only=True)
class Erase:
    """Fills a random rectangle (random erasing, Zhong et al. 2020).

    Attributes:
        p: probability.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest height / width, drawn uniformly in the logarithm.
        fill: colour, RGB 0..255; default the mean of ImageNet, as re-ID baselines use.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 3.33)
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        check_share("p", self.p)
        check_interval("area", self.area, 0, 1)
        check_interval("aspect", self.aspect, 0, 100)
        check_colour("fill", self.fill)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Applies it: uint8 [H, W, 3] to the same."""
        chance, share, slope, down, right = rng.random(5).tolist()
        if chance >= self.p:
            return image
        height, width = image.shape[:2]
        area = height * width * (self.area[0] + share * (self.area[1] - self.area[0]))
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        aspect = math.exp(low + slope * (high - low))
        # A rectangle longer than the image is cut to it, rather than drawn again and again.
        tall = min(max(round(math.sqrt(area * aspect)), 1), height)
        wide = min(max(round(math.sqrt(area / aspect)), 1), width)
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        out = planes_of(image).transpose(1, 2, 0)
        out[top : top + tall, left : left + wide] = np.array(self.fill, np.uint8)
        return out


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Changes brightness, contrast and saturation; sometimes takes all colour away.

    Each of the three is a factor drawn uniformly from 1 - value .. 1 + value.

    Attributes:
        p: probability of the three changes.
        brightness: largest relative change, in [0, 1].
        contrast: largest relative change, around the mean luma.
        saturation: largest relative change, around the luma of each pixel.
        grey: probability of a grey image.
    """

    p: float = 1.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    grey: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_share(field.name, getattr(self, field.name))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Applies it: uint8 [H, W, 3] to the same."""
        chance, grey_chance = rng.random(2).tolist()
        brightness, contrast, saturation = (1 + rng.uniform(-1, 1, 3) * self._amounts()).tolist()
        if chance < self.p:
            image = _adjust(image, brightness, contrast, saturation)
        if grey_chance < self.grey:
            luma = np.rint(_luma(planes_of(image, np.float32))).astype(np.uint8)
            image = np.repeat(luma[:, :, None], 3, axis=2)
        return image

    def _amounts(self) -> np.ndarray:
        return np.array([self.brightness, self.contrast, self.saturation])


def _luma(planes: np.ndarray) -> np.ndarray:
    """float32 [3, H, W] to [H, W]."""
    red, green, blue = planes
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def _adjust(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    planes = planes_of(image, np.float32)
    luma = _luma(planes)
    mean = float(luma.mean())
    # All three at once, with b, c, s: out = b c (s x + (1 - s) luma) + b (1 - c) mean.
    scale = brightness * contrast
    planes *= scale * saturation
    planes += scale * (1 - saturation) * luma + brightness * (1 - contrast) * mean + 0.5
    return np.clip(planes, 0, 255.5, out=planes).astype(np.uint8).transpose(1, 2, 0)


@dataclass(frozen=True, kw_only=True)
class LowResolution:
    """Shrinks the image and enlarges it again: a face far from the camera.

    Attributes:
        p: probability.
        scale: smallest and largest share of the side that is left, in (0, 1].
    """

    p: float = 0.2
    scale: tuple[float, float] = (0.25, 1.0)

    def __post_init__(self) -> None:
        check_share("p", self.p)
        check_interval("scale", self.scale, 0, 1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Applies it: uint8 [H, W, 3] to the same."""
        chance, place = rng.random(2).tolist()
        if chance >= self.p:
            return image
        height, width = image.shape[:2]
        scale = self.scale[0] + place * (self.scale[1] - self.scale[0])
        small = max(round(width * scale), 1), max(round(height * scale), 1)
        picture = Image.fromarray(pixelwise(image))
        picture = picture.resize(small, Image.Resampling.BILINEAR)
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
