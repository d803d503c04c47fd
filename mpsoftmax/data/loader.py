"""Batches from an image set: decoded, augmented, in a given order, ahead of time.

A batch is one unit of work for one worker process. What it holds depends on (seed, stream
position) alone, so neither the number of workers nor the number of ranks changes a pixel.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mpsoftmax.data.assembly import Assembled, Assembly, Request
from mpsoftmax.data.decode import check_decoder
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.order import Order
from mpsoftmax.data.transforms import Transform
from mpsoftmax.data.worker_signals import outlive, start_servers

BATCHES_AHEAD = 4  # batches each worker prepares ahead


@dataclass(frozen=True)
class Batch:
    """Images with their classes.

    Attributes:
        images: uint8 [b, 3, H, W], RGB.
        labels: int64 [b]; -1 = ignore.
        skipped: names of corrupt images; their image is zero, their label -1.
    """

    images: Tensor
    labels: Tensor
    skipped: tuple[str, ...]


class Loader:
    """Reads batches of an image set, inline or by worker processes."""

    def __init__(
        self,
        images: ImageSet,
        order: Order | None,
        *,
        size: tuple[int, int],
        decoder: str = "pillow",
        crop: float = 1.0,
        augment: Sequence[Transform] = (),
        seed: int = 0,
        workers: int = 0,
        max_corrupt: int = 0,
    ) -> None:
        """Describes the reading; nothing is read yet.

        Args:
            images: the set; must be picklable where worker processes are spawned.
            order: the stream positions refer to; None where a position is a sample index.
            size: (height, width) of the batches in pixels.
            decoder: a name of `mpsoftmax.data.decode.DECODERS`.
            crop: central share of each side that is kept before resizing, in (0, 1].
            augment: augmentations, applied in this order.
            seed: of the augmentations, 0 .. 2^64-1.
            workers: worker processes; 0 reads in this process.
            max_corrupt: different corrupt images a stream may meet before it stops with an error.

        Raises:
            ValueError: a value is out of range, or the decoder is unknown or not installed.
        """
        for field, value in (("workers", workers), ("max_corrupt", max_corrupt)):
            if value < 0:
                raise ValueError(f"{field}: {value} is negative")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size: {size} is not (height, width) in pixels")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed} is not in 0 .. 2^64-1")
        if not 0 < crop <= 1:
            raise ValueError(f"crop: {crop} is not in (0, 1]")
        check_decoder(decoder)
        self._order = order
        self._num_samples = len(images)
        self._assembly = Assembly(images, (size[0], size[1]), decoder, crop, tuple(augment), seed)
        self._workers = workers
        self._max_corrupt = max_corrupt

    def stream(self, cuts: Iterable[tuple[int, int]]) -> Generator[Batch, None, None]:
        """One batch for each cut, in order.

        With workers, `cuts` is read some batches ahead. The workers end when the iterator is
        exhausted, closed or dropped.

        Args:
            cuts: (start, stop) stream positions; an empty cut gives an empty batch.

        Yields:
            The batches.

        Raises:
            ValueError: more corrupt images in this stream than `max_corrupt`; names the image. Or
                a position beyond the set where there is no order.
        """
        names: set[str] = set()
        for images, labels, corrupt in self._read(cuts):
            for name, problem in corrupt:
                names.add(name)
                if len(names) > self._max_corrupt:
                    raise ValueError(
                        f"corrupt image {name}: {problem} ({len(names)} corrupt so far, max_corrupt:"
                        f" {self._max_corrupt})"
                    )
            yield Batch(images, labels, tuple(name for name, _ in corrupt))

    def _read(self, cuts: Iterable[tuple[int, int]]) -> Iterator[Assembled]:
        requests = (Request(start, self._samples(start, stop)) for start, stop in cuts)
        if self._workers == 0:
            yield from map(self._assembly.__getitem__, requests)
            return
        loader = DataLoader(
            self._assembly,
            batch_size=None,  # a request is a batch already
            sampler=_Requests(requests),
            num_workers=self._workers,
            prefetch_factor=BATCHES_AHEAD,
            multiprocessing_context=_clean_processes(),
            worker_init_fn=outlive,
            generator=torch.Generator(),  # else each stream would advance the global generator
        )
        batches = iter(loader)
        try:
            yield from batches
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
                raise
            raise WorkerLost(
                f"a data worker of this rank was killed ({error}): out of memory, or by hand; data.workers: "
                f"{self._workers}"
            ) from error
        finally:
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()

    def _samples(self, start: int, stop: int) -> np.ndarray:
        if self._order is not None:
            return self._order.samples(start, stop)
        if not 0 <= start <= stop <= self._num_samples:
            raise ValueError(
                f"cuts: ({start}, {stop}) is not within the {self._num_samples} samples"
            )
        return np.arange(start, stop, dtype=np.int64)


class WorkerLost(RuntimeError):
    """A process that decodes images is gone."""


def _clean_processes() -> BaseContext:
    """Where workers are forked from: a server process that has one thread and no process group.

    Forking the trainer itself, with its gloo, autograd and Arrow threads, deadlocks or crashes now and then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    start_servers()
    return context


class _Requests(Sampler[Request]):
    """Hands requests to the DataLoader as they come; it may not know how many there will be."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)
