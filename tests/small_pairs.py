"""A small verification set of synthetic images, written as a .bin file."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from mpsoftmax.data.pairs import MemoryImages, PairSet, write_bin
from mpsoftmax.data.synthetic import Synthetic


def write_pairs(path: Path, num_pairs: int = 60) -> Path:
    """Half of the pairs are of one class; images are 16 x 16, as in small_runs."""
    images = Synthetic(num_classes=20, images_per_class=6, size=(16, 16))
    labels = np.asarray(images.labels)
    rng = np.random.default_rng(0)
    same = np.arange(num_pairs) % 2 == 0
    first = rng.integers(0, len(labels), num_pairs)
    second = [
        rng.choice(np.flatnonzero((labels == labels[a]) == s))
        for a, s in zip(first, same, strict=True)
    ]
    items = [as_png(np.asarray(images.image(i))) for i in range(len(labels))]
    chosen = MemoryImages(str(path), items, np.arange(len(items)))
    write_bin(path, PairSet(chosen, np.stack([first, second], 1), same))
    return path


def as_png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()
