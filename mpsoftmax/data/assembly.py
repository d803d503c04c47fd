"""One batch put together: read, decoded, augmented, written into the memory it is handed over in.

What a batch holds depends on (seed, stream position) alone. The cost of an image beyond its decoding
is kept to one read, one turn from pixels to planes, and the draws of its augmentations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from mpsoftmax.data.decode import CorruptImage, decode
from mpsoftmax.data.image_set import IGNORE, ImageSet
from mpsoftmax.data.transforms import Transform

# Sets this use of Philox apart from the permutations, which are keyed by the same seed.
_AUGMENT_COUNTER = (0, 0, 0, 1)

Assembled = tuple[Tensor, Tensor, tuple[tuple[str, str], ...]]
"""Images uint8 [b, 3, H, W], labels int64 [b], and (name, problem) of each corrupt image."""


@dataclass(frozen=True)
class Request:
    """The samples of one batch.

    Attributes:
        start: stream position of the first.
        samples: int64 [b], their indices in the set.
    """

    start: int
    samples: np.ndarray


@dataclass(frozen=True)
class Assembly(Dataset[Assembled]):
    """What turns a request into a batch, in this process or a worker; the loader says what fields are."""

    images: ImageSet
    size: tuple[int, int]
    decoder: str
    crop: float
    augment: tuple[Transform, ...]
    seed: int

    def __getitem__(self, request: Request) -> Assembled:
        """The batch of a request; indexing is the DataLoader's word for it."""
        batch = _uninitialised((len(request.samples), 3, *self.size))
        planes = batch.numpy()
        pixels = planes.transpose(0, 2, 3, 1)  # as images come: [b, H, W, 3], planes in memory
        labels = self.images.labels[request.samples].astype(np.int64)
        draws = Draws(self.seed)
        corrupt = []
        for row, sample in enumerate(request.samples.tolist()):
            try:
                pixels[row] = self._image(sample, request.start + row, draws)
            except CorruptImage as error:
                planes[row] = 0
                labels[row] = IGNORE
                corrupt.append((self.images.name(sample), str(error)))
        return batch, torch.from_numpy(labels), tuple(corrupt)

    def _image(self, sample: int, position: int, draws: Draws) -> np.ndarray:
        image = decode(self.images.image(sample), self.size, self.decoder, self.crop)
        if self.augment:
            rng = draws.at(position)
            for transform in self.augment:
                image = transform(image, rng)
        return image


def _uninitialised(shape: tuple[int, ...]) -> Tensor:
    """uint8 of a shape; in a worker in shared memory, where the DataLoader would copy it to otherwise."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    memory = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(memory).view(shape)


class Draws:
    """The random numbers of each stream position: those of a Philox keyed by (seed, position).

    One generator is set to the beginning of a position's numbers: making a new one costs ten times as much.
    """

    def __init__(self, seed: int) -> None:
        key, counter = np.array([seed, 0], np.uint64), np.array(_AUGMENT_COUNTER, np.uint64)
        self._bits = np.random.Philox(key=key, counter=counter)
        self._state = self._bits.state  # before its first number: nothing is left in its buffer
        self._generator = np.random.Generator(self._bits)

    def at(self, position: int) -> np.random.Generator:
        """A generator at the first number of a position; valid until the next call."""
        self._state["state"]["key"][1] = position
        self._bits.state = self._state
        return self._generator
