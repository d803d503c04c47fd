"""The rows of one step: opened, moved tile by tile, put back.

Three ways, the same to the caller: views of resident rows, tiles gathered from resident rows, and rows held
for the step while their store is elsewhere, read ahead and written behind by a thread of its own.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import torch
from torch import Tensor

from mpsoftmax.head.history import CatchUp
from mpsoftmax.head.row_store import DenseStore, RowStore, Where, take

Parts = list[Tensor]
"""[weight, *states], each [n, D]."""

Round = Callable[[int, int, int, Tensor], Tensor]
"""(part, low, high, wide) -> the tile in the store's dtype."""


def nearest(part: int, low: int, high: int, wide: Tensor) -> Tensor:
    """Leave the rounding, if any, to the copy into the store."""
    return wide


class Window(Protocol):
    """Rows 0..n-1 of a step, in the work dtype."""

    def open(self, low: int, high: int) -> Parts:
        """Rows low..high-1, to be changed in place."""
        ...

    def put(self, low: int, high: int, parts: Parts) -> None:
        """Take what `open` gave back."""
        ...

    def close(self, row_step: Tensor) -> None:
        """The rows are current to `row_step` int64 [n]."""
        ...


class ResidentWindow:
    """Rows of a dense store beside the kernels.

    Args:
        store: The rows.
        where: Which of them.
        dtype: Work dtype.
        catch_up: Applied to what lags behind; None: nothing does.
        rounded: Work dtype to store dtype.
    """

    def __init__(
        self,
        store: DenseStore,
        where: Where,
        dtype: torch.dtype,
        catch_up: CatchUp | None = None,
        rounded: Round = nearest,
    ) -> None:
        self._store, self._rows, self._dtype = store, where, dtype
        self._tensors = [store.weight, *store.states]
        self._catch_up, self._round = catch_up, rounded
        views = isinstance(where, slice) and store.weight.dtype == dtype
        self._in_place = views and catch_up is None

    def _where(self, low: int, high: int) -> Where:
        if isinstance(self._rows, Tensor):
            return self._rows[low:high]
        start = self._rows.start or 0
        return slice(start + low, start + high)

    def stored(self, low: int, high: int) -> Parts:
        """Rows low..high-1 as they are stored, in the work dtype; views where possible."""
        where = self._where(low, high)
        return [take(tensor, where).to(self._dtype) for tensor in self._tensors]

    def open(self, low: int, high: int) -> Parts:
        """See Window."""
        parts = self.stored(low, high)
        if self._catch_up is None:
            return parts
        return [self._catch_up(part, parts, low, high) for part in range(len(parts))]

    def put(self, low: int, high: int, parts: Parts) -> None:
        """See Window."""
        if self._in_place:
            return
        where = self._where(low, high)
        for number, tensor in enumerate(self._tensors):
            tensor[where] = self._round(number, low, high, parts[number])

    def close(self, row_step: Tensor) -> None:
        """See Window."""
        self._store.row_step[self._rows] = row_step


class HeldWindow:
    """Rows that were read for the step, written back behind it.

    Args:
        traffic: Where they came from.
        index: int64 [n] local rows.
        parts: As of now, work dtype; owned by the window.
        rounded: Work dtype to store dtype.
    """

    def __init__(self, traffic: "RowTraffic", index: Tensor, parts: Parts, rounded: Round) -> None:
        self._traffic, self._index, self._parts, self._round = traffic, index, parts, rounded
        dtype = traffic.dtype
        same = parts[0].dtype == dtype
        self._out = parts if same else [torch.empty_like(part, dtype=dtype) for part in parts]

    def open(self, low: int, high: int) -> Parts:
        """See Window."""
        return [part[low:high] for part in self._parts]

    def put(self, low: int, high: int, parts: Parts) -> None:
        """See Window."""
        if self._out is not self._parts:
            for number, out in enumerate(self._out):
                out[low:high] = self._round(number, low, high, parts[number])

    def close(self, row_step: Tensor) -> None:
        """See Window."""
        self._traffic.behind(self._index, self._out, row_step)


class RowTraffic:
    """Reads and writes of a store, one after the other on a thread of their own.

    What is read after a write was handed in sees it. An error of a write is raised by whatever comes next.

    Args:
        store: The rows.
        dtype: Of the store.
    """

    def __init__(self, store: RowStore, dtype: torch.dtype) -> None:
        self.dtype, self._store = dtype, store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="class-rows")
        self._writes: list[Future[None]] = []
        self._coming: tuple[Tensor, Future[tuple[Parts, Tensor]]] | None = None
        self._num_ahead = 0

    def ahead(self, index: Tensor) -> None:
        """Begin to read rows int64 [n]; the next `read` of the same rows takes them."""
        self._raise_failed()
        self._coming = (index, self._thread.submit(self._store.read, index))

    def read(self, where: Where) -> tuple[Parts, Tensor]:
        """See RowStore.read."""
        self._raise_failed()
        coming, self._coming = self._coming, None
        if coming is not None and isinstance(where, Tensor) and torch.equal(coming[0], where):
            self._num_ahead += where.numel()
            return coming[1].result()
        return self._thread.submit(self._store.read, where).result()

    def behind(self, where: Where, parts: Sequence[Tensor], row_step: Tensor) -> None:
        """Hand in rows to be written; they belong to the writer from now on."""
        self._raise_failed()
        self._coming = None  # what is being read would be of before
        self._writes.append(self._thread.submit(self._store.write, where, list(parts), row_step))

    def taken_ahead(self) -> int:
        """Rows that `ahead` began and `read` took since this was last asked."""
        number, self._num_ahead = self._num_ahead, 0
        return number

    def forget(self) -> None:
        """Drop what is being read ahead, and wait for its reader: the store is about to become another."""
        coming, self._coming = self._coming, None
        if coming is not None:
            wait([coming[1]])

    def settle(self) -> None:
        """Wait until everything handed in is written."""
        for write in self._writes:
            write.result()
        self._writes.clear()

    def _raise_failed(self) -> None:
        pending = []
        for write in self._writes:
            if write.done():
                write.result()
            else:
                pending.append(write)
        self._writes = pending
