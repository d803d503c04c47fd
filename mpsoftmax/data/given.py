"""Images that a program has at hand, as a set without classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpsoftmax.data.image_set import WithoutClasses

GivenImage = str | Path | bytes | np.ndarray
"""An image file's path, an encoded image, or RGB pixels uint8 [H, W, 3]."""


@dataclass(frozen=True, eq=False)
class GivenImages(WithoutClasses):
    """A list of image files, encoded images or pixel arrays; an ``ImageSet``.

    Attributes:
        items: The images; files are read when they are asked for.

    Raises:
        ValueError: One is of another kind; names it.
    """

    items: Sequence[GivenImage]

    def __post_init__(self) -> None:
        for index, item in enumerate(self.items):
            if not isinstance(item, GivenImage):
                raise ValueError(
                    f"images[{index}] is a {type(item).__name__}; allowed: a path, encoded bytes, or pixels "
                    "uint8 [H, W, 3]"
                )

    def image(self, index: int) -> bytes | np.ndarray:
        """Encoded bytes, or the array."""
        item = self.items[index]
        if isinstance(item, str | Path):
            return Path(item).read_bytes()
        return item

    def name(self, index: int) -> str:
        """The path, or ``images[INDEX]``."""
        item = self.items[index]
        return str(item) if isinstance(item, str | Path) else f"images[{index}]"
