"""Images on their way to the device one batch ahead: copied on a stream of their own beside a step.

On a CPU there is nowhere to copy to and batches pass as they are. Labels stay in host memory: the loop reads
them there, and they are a thousandth of the images.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from mpsoftmax.data.loader import Batch


class Copier(Protocol):
    """Copies of images, begun now and taken later."""

    def begin(self, images: Tensor) -> object:
        """Start to copy; what it gives is handed to `take`."""
        ...

    def take(self, begun: object) -> Tensor:
        """The copy, ready for what is computed from now on."""
        ...


class SideStream:
    """Copies to a GPU from pinned memory, on a stream beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def begin(self, images: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """See Copier."""
        pinned = images.pin_memory()  # its allocator keeps the memory until the copy is done
        with torch.cuda.stream(self._stream):
            copy = pinned.to(self._device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        return copy, done

    def take(self, begun: object) -> Tensor:
        """See Copier."""
        assert isinstance(begun, tuple)
        copy, done = begun
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(done)
        copy.record_stream(computing)  # else the side stream's allocator could reuse it too early
        return copy


def on_device(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """The batches, their images on the device where that is a GPU."""
    return one_ahead(batches, SideStream(device)) if device.type == "cuda" else batches


def one_ahead(
    batches: Generator[Batch, None, None], copier: Copier
) -> Generator[Batch, None, None]:
    """Each batch with its images copied; the copy of the next one is begun before it is handed out.

    What goes wrong with the next batch is raised when it is asked for, not before.
    """
    waiting: tuple[Batch, object] | None = None
    problem: Exception | None = None
    try:
        while problem is None:
            begun: tuple[Batch, object] | None = None
            try:
                batch = next(batches)
                begun = batch, copier.begin(batch.images)
            except Exception as error:
                problem = error
            if waiting is not None:
                yield replace(waiting[0], images=copier.take(waiting[1]))
            waiting = begun
        if not isinstance(problem, StopIteration):
            raise problem
    finally:
        batches.close()
