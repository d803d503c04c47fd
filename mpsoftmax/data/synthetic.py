"""Synthetic images: any number of classes from nothing, for tests, benchmarks and load trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mpsoftmax.data.string_table import LazyStrings

_GRID = 5  # a class is a random colour field of this many points each way, smoothly enlarged
_SHIFT = 1 / 16  # largest shift, as a share of the side


class Synthetic:
    """An `ImageSet` of smooth random patterns, one a class, with shifts and pixel noise.

    Pure functions of (seed, class) and (seed, index); nothing is stored but the labels. Image i
    belongs to class i // images_per_class.

    Attributes:
        labels: int64 [num_classes * images_per_class].
        class_names: "class-000000" and so on, made when asked for.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        images_per_class: int = 20,
        size: tuple[int, int] = (112, 112),
        seed: int = 0,
    ) -> None:
        """Describes the set.

        Args:
            num_classes: at least 1.
            images_per_class: at least 1.
            size: (height, width) in pixels, each at least 8.
            seed: 0 .. 2^64-1; another seed gives other classes.

        Raises:
            ValueError: a value is out of range.
        """
        for field, value in (("num_classes", num_classes), ("images_per_class", images_per_class)):
            if value < 1:
                raise ValueError(f"{field}: {value} is not at least 1")
        if len(size) != 2 or min(size) < 8:
            raise ValueError(f"size: {size} is not (height, width) of at least 8 pixels each")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed} is not in 0 .. 2^64-1")
        self.labels = np.repeat(np.arange(num_classes, dtype=np.int64), images_per_class)
        self.class_names: Sequence[str] = _Names(num_classes)
        self._size = (size[0], size[1])
        self._seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """uint8 [height, width, 3]."""
        height, width = self._size
        pattern = self._pattern(int(self.labels[index]))
        rng = self._rng(index, purpose=1)
        limits = int(height * _SHIFT), int(width * _SHIFT)
        shift = tuple(int(rng.integers(-limit, limit + 1)) for limit in limits)
        # Whole random bytes are the cheapest noise: halved, uniform over -64 .. 63 grey levels.
        noise = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8) >> 1
        shifted = np.roll(pattern, shift, axis=(0, 1)).astype(np.int16) + noise - 64
        return np.clip(shifted, 0, 255).astype(np.uint8)

    def name(self, index: int) -> str:
        """Class and number within the class."""
        label = int(self.labels[index])
        number = index - int(np.searchsorted(self.labels, label))
        return f"synthetic {self.class_names[label]} image {number}"

    def _pattern(self, label: int) -> np.ndarray:
        height, width = self._size
        grid = self._rng(label, purpose=0).integers(0, 256, (_GRID, _GRID, 3), dtype=np.uint8)
        image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def _rng(self, number: int, purpose: int) -> np.random.Generator:
        key = np.array([self._seed, number], np.uint64)
        counter = np.array([0, 0, 0, purpose], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


class _Names(LazyStrings):
    """Class names that take no memory, for sets of a hundred million classes."""

    def __init__(self, num: int) -> None:
        self._num = num

    def __len__(self) -> int:
        return self._num

    def at(self, position: int) -> str:
        """See LazyStrings."""
        return f"class-{position:06d}"
