"""Where class rows live: on the device, in host memory, or in a file.

    device   tensors beside the kernels; a step works on them in place
    host     tensors in (pinned) host memory; a step copies the rows it samples to the device and back
    mapped   a memory-mapped file of the rows that were ever written; the others are made anew from their
             class ids

A store knows rows, states and steps; how they move is the class table's business (class_table.py), when they
are read ahead and written behind that of `Window` (row_window.py).
"""

import contextlib
import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

STORAGES = ("device", "host", "mapped")
DISK_RESERVE_BYTES = 256 * 2**20
"""Free disk space that a mapped store leaves: a full disk under a mapping kills the process."""

Where = slice | Tensor
"""Local rows: a slice, or int64 [n] without repetition."""


def take(tensor: Tensor, where: Where) -> Tensor:
    """Rows of a tensor: a view of a slice, else a copy (index_select: several times as fast as indexing)."""
    return tensor[where] if isinstance(where, slice) else tensor.index_select(0, where)


class RowStore(Protocol):
    """Rows of one rank: the weight, the optimiser's states, and the step each row is current to."""

    resident: bool
    """Whether the rows lie on the device, so that views of them can be worked on."""

    def read(self, where: Where) -> tuple[list[Tensor], Tensor]:
        """Copies on the device: [weight, *states] each [n, D], and row steps int64 [n]."""
        ...

    def write(self, where: Where, parts: list[Tensor], row_step: Tensor) -> None:
        """Overwrite rows; the parts are cast to the store's dtype (rounded to nearest)."""
        ...

    def clear(self) -> None:
        """Initial rows, no state, step 0."""
        ...


class DenseStore:
    """All rows in memory, on the device or on the host.

    Args:
        num_rows: Rows of this rank.
        dim: D.
        num_states: Optimiser buffers of the shape of the weight.
        dtype: Of rows and states.
        device: Where kernels run.
        initial: (first, last) -> float32 [n, D]: initial rows.
        chunk: Rows initialised at once.
        on_host: Keep them in host memory, pinned where there is a GPU.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int,
        num_states: int,
        dtype: torch.dtype,
        device: torch.device,
        initial: Callable[[int, int], np.ndarray],
        chunk: int,
        *,
        on_host: bool = False,
    ) -> None:
        self.resident, self._device = not on_host, device
        pinned = on_host and device.type == "cuda"
        where = torch.device("cpu") if on_host else device

        def rows() -> Tensor:
            return torch.zeros(num_rows, dim, dtype=dtype, device=where, pin_memory=pinned)

        self.weight, self.states = rows(), [rows() for _ in range(num_states)]
        self.row_step = torch.zeros(num_rows, dtype=torch.int64, device=where)
        self._initial, self._chunk = initial, chunk
        self._start()

    def _start(self) -> None:
        num_rows = self.weight.shape[0]
        for first in range(0, num_rows, self._chunk):
            last = min(first + self._chunk, num_rows)
            self.weight[first:last] = torch.from_numpy(self._initial(first, last))

    def clear(self) -> None:
        """See RowStore."""
        self._start()
        for tensor in (*self.states, self.row_step):
            tensor.zero_()

    def read(self, where: Where) -> tuple[list[Tensor], Tensor]:
        """See RowStore."""
        where = self._at_home(where)
        tensors = (self.weight, *self.states, self.row_step)
        parts = [take(part, where) for part in tensors]
        if isinstance(where, slice):
            parts = [part.clone() for part in parts]
        parts = [part.to(self._device, non_blocking=True) for part in parts]
        return parts[:-1], parts[-1]

    def write(self, where: Where, parts: list[Tensor], row_step: Tensor) -> None:
        """See RowStore."""
        where = self._at_home(where)
        for tensor, part in zip((self.weight, *self.states), parts, strict=True):
            tensor[where] = part.to(tensor)
        self.row_step[where] = row_step.to(self.row_step.device)

    def _at_home(self, where: Where) -> Where:
        return where if isinstance(where, slice) else where.to(self.row_step.device)


class MappedStore:
    """Rows in a memory-mapped file: only rows that were written exist.

    A file without a name holds weight and states of a row side by side in the row dtype, rows in the order in
    which they were first written: the file is full where it is written and takes no disk behind that. (Rows
    at the place of their class id would take a page each, and a file of as many extents is slow to remove.)
    Memory holds four bytes for every row, its place in the file, and four for each that exists, its step. The
    file is scratch: the checkpoint is the truth. It is unlinked as soon as it is open, so that the system
    frees it with the process, however that ends: `df` shows its space, `ls` does not.

    Args:
        directory: Where the file lies; created.
        num_rows: Rows of this rank, fewer than 2^31.
        dim: D.
        num_states: Optimiser buffers.
        dtype: Of rows and states.
        device: Where kernels run.
        initial: Local rows int64 [n], ascending, -> float32 [n, D]: rows that do not exist yet.

    Raises:
        OSError: writing would leave less than DISK_RESERVE_BYTES on the disk.
    """

    resident = False

    def __init__(
        self,
        directory: Path,
        num_rows: int,
        dim: int,
        num_states: int,
        dtype: torch.dtype,
        device: torch.device,
        initial: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self._device, self._initial, self._dim = device, initial, dim
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        width = (1 + num_states) * dim
        self._row_bytes = width * dtype.itemsize
        self._places = torch.zeros(num_rows, dtype=torch.int32)  # place + 1; 0: does not exist
        self._steps = torch.zeros(0, dtype=torch.int32)
        self._num = 0
        with tempfile.TemporaryFile(prefix="mpsoftmax-rows-", dir=directory) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._records = self._mapped(dtype).view(num_rows, width)

    def _mapped(self, dtype: torch.dtype) -> Tensor:
        """The file, of the size of all rows, as a tensor of zeros."""
        os.ftruncate(self._descriptor, 0)
        num_bytes = self._places.numel() * self._row_bytes
        if not num_bytes:
            return torch.empty(0, dtype=dtype)
        os.ftruncate(self._descriptor, num_bytes)
        mapping = mmap.mmap(self._descriptor, num_bytes)
        with contextlib.suppress(OSError):  # a hint: some file systems refuse it
            mapping.madvise(mmap.MADV_RANDOM)
        return torch.frombuffer(mapping, dtype=dtype)

    def read(self, where: Where) -> tuple[list[Tensor], Tensor]:
        """See RowStore. Rows that do not exist are made, not written."""
        parts, row_step = self.read_home(where)
        return [part.to(self._device) for part in parts], row_step.to(self._device)

    def read_home(self, where: Where) -> tuple[list[Tensor], Tensor]:
        """`read` into host memory: all rows that exist may be more than a device holds."""
        index = self._listed(where)
        places = self._places[index].to(torch.int64) - 1
        records = self._records.new_zeros(index.numel(), self._records.shape[1])
        row_step = torch.zeros_like(index)
        exist = torch.nonzero(places >= 0)[:, 0]
        if exist.numel() == index.numel():
            torch.index_select(self._records, 0, places, out=records)
        else:
            records[exist] = self._records.index_select(0, places[exist])
        row_step[exist] = self._steps[places[exist]].to(torch.int64)
        # Contiguous: torch's fused optimisers do not look at strides.
        parts = [part.contiguous() for part in records.split(self._dim, dim=1)]
        fresh = torch.nonzero(places < 0)[:, 0]
        if fresh.numel():
            wanted, inverse = torch.unique(index[fresh], return_inverse=True)
            rows = torch.from_numpy(self._initial(wanted.numpy()))
            parts[0][fresh] = rows.to(records.dtype)[inverse]
        return parts, row_step

    def write(self, where: Where, parts: list[Tensor], row_step: Tensor) -> None:
        """See RowStore."""
        index = self._listed(where)
        self._make_room(index[self._places[index] == 0])
        places = self._places[index].to(torch.int64) - 1
        home = [part.to("cpu", self._records.dtype) for part in parts]
        self._records.index_copy_(0, places, torch.cat(home, dim=1))
        self._steps[places] = row_step.cpu().to(torch.int32)

    def _make_room(self, new: Tensor) -> None:
        """Places behind the last one for rows int64 [n] that do not exist yet."""
        num = new.numel()
        if not num:
            return
        self._check_space(num)
        last = self._num + num
        if last > self._steps.numel():
            larger = torch.zeros(min(2 * last, self._places.numel()), dtype=torch.int32)
            larger[: self._num] = self._steps[: self._num]
            self._steps = larger
        self._places[new] = torch.arange(self._num + 1, last + 1, dtype=torch.int32)
        self._num = last

    def _check_space(self, num_new: int) -> None:
        """Raise before the disk is full: the kernel would end the process instead."""
        needed = num_new * self._row_bytes + mmap.PAGESIZE + DISK_RESERVE_BYTES
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize < needed:
            raise OSError(
                errno.ENOSPC,
                f"storage_dir: {num_new} new class rows need up to {needed >> 20} MiB with the reserve, "
                f"{self._directory} has {disk.f_bavail * disk.f_frsize >> 20} MiB",
            )

    def existing(self) -> Tensor:
        """Local rows that exist, ascending: int64."""
        return torch.nonzero(self._places)[:, 0]

    def clear(self) -> None:
        """See RowStore; the disk is given back."""
        self._places = torch.zeros_like(self._places)  # untouched pages take no memory
        self._num = 0
        os.ftruncate(self._descriptor, 0)
        os.ftruncate(self._descriptor, self._records.numel() * self._records.element_size())

    def _listed(self, where: Where) -> Tensor:
        if isinstance(where, slice):
            return torch.arange(*where.indices(self._places.numel()))
        return where.cpu()
