"""Where class rows live: on the device, in host memory, or in a sparse file.

    device   tensors beside the kernels; a step works on them in place
    host     tensors in (pinned) host memory; a step copies the rows it samples to the device and back
    mapped   a memory-mapped file; a row that was never written takes no disk and is made anew from
             its class id

A store knows rows, states and steps; how they move is the class table's business (class_table.py), when they
are read ahead and written behind that of `Window` (row_window.py).
"""

import contextlib
import errno
import fcntl
import gc
import mmap
import os
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
        for first in range(0, num_rows, chunk):
            last = min(first + chunk, num_rows)
            self.weight[first:last] = torch.from_numpy(initial(first, last))
        self.row_step = torch.zeros(num_rows, dtype=torch.int64, device=where)

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


def open_alone(path: Path) -> int | None:
    """The file, created and locked for as long as it is open; None where another store has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        # Its last owner may have removed it between opening and locking.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def remove(descriptor: int, path: Path) -> None:
    """Remove the file, and only then let go of its lock."""
    path.unlink(missing_ok=True)
    os.close(descriptor)


class MappedStore:
    """Rows in a sparse, memory-mapped file: only rows that were written exist.

    Two files: `rows-RANK.bin`, for every row its weight and states side by side in the row dtype, and
    `steps-RANK.bin`, int32: 0 where the row does not exist, else its step + 1. They are scratch: the
    checkpoint is the truth, what an earlier process left is overwritten, and they are removed at the end.

    Args:
        directory: Where the files lie; created.
        rank: Names the files.
        num_rows: Rows of this rank.
        dim: D.
        num_states: Optimiser buffers.
        dtype: Of rows and states.
        device: Where kernels run.
        initial: Local rows int64 [n], ascending, -> float32 [n, D]: rows that do not exist yet.

    Raises:
        ValueError: the files are in use by another run.
        OSError: writing would leave less than DISK_RESERVE_BYTES on the disk.
    """

    resident = False

    def __init__(
        self,
        directory: Path,
        rank: int,
        num_rows: int,
        dim: int,
        num_states: int,
        dtype: torch.dtype,
        device: torch.device,
        initial: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self._device, self._initial, self._dim = device, initial, dim
        self._num_parts = 1 + num_states
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._descriptors: list[int] = []
        width = self._num_parts * dim
        self._row_bytes = width * dtype.itemsize
        records = self._map(directory / f"rows-{rank}.bin", num_rows * width, dtype)
        self._records = records.view(num_rows, width)
        self._marks = self._map(directory / f"steps-{rank}.bin", num_rows, torch.int32)

    def _map(self, path: Path, size: int, dtype: torch.dtype) -> Tensor:
        """A sparse file of `size` zeros as a tensor; removed when this store goes."""
        descriptor = open_alone(path)
        if descriptor is None:
            gc.collect()  # a head of this process that nobody holds any more frees its files now
            descriptor = open_alone(path)
        if descriptor is None:
            raise ValueError(
                f"storage_dir: {path} is in use by another run; allowed: a folder of its own for every run"
            )
        weakref.finalize(self, remove, descriptor, path)
        self._descriptors.append(descriptor)
        os.ftruncate(descriptor, 0)
        num_bytes = size * dtype.itemsize
        if not num_bytes:
            return torch.empty(0, dtype=dtype)
        os.ftruncate(descriptor, num_bytes)
        mapping = mmap.mmap(descriptor, num_bytes)
        with contextlib.suppress(OSError):  # a hint: some file systems refuse it
            mapping.madvise(mmap.MADV_RANDOM)
        return torch.frombuffer(mapping, dtype=dtype)

    def read(self, where: Where) -> tuple[list[Tensor], Tensor]:
        """See RowStore. Rows that do not exist are made, not written."""
        index = self._listed(where)
        records, marks = self._records.index_select(0, index), self._marks[index]
        # Contiguous: torch's fused optimisers do not look at strides.
        parts = [part.contiguous() for part in records.split(self._dim, dim=1)]
        fresh = torch.nonzero(marks == 0)[:, 0]
        if fresh.numel():
            wanted, inverse = torch.unique(index[fresh], return_inverse=True)
            rows = torch.from_numpy(self._initial(wanted.numpy()))
            parts[0][fresh] = rows.to(records.dtype)[inverse]
        row_step = (marks - 1).clamp_min_(0).to(torch.int64)
        return [part.to(self._device) for part in parts], row_step.to(self._device)

    def write(self, where: Where, parts: list[Tensor], row_step: Tensor) -> None:
        """See RowStore."""
        index = self._listed(where)
        self._check_space(index)
        home = [part.to("cpu", self._records.dtype) for part in parts]
        self._records.index_copy_(0, index, torch.cat(home, dim=1))
        self._marks[index] = (row_step.cpu() + 1).to(torch.int32)

    def _check_space(self, index: Tensor) -> None:
        """Raise before the disk is full: the kernel would end the process instead."""
        num_new = int((self._marks[index] == 0).sum())
        page = mmap.PAGESIZE
        needed = num_new * (-(-self._row_bytes // page) + 1) * page + DISK_RESERVE_BYTES
        disk = os.statvfs(self._directory)
        if num_new and disk.f_bavail * disk.f_frsize < needed:
            raise OSError(
                errno.ENOSPC,
                f"storage_dir: {num_new} new class rows need up to {needed >> 20} MiB with the reserve, "
                f"{self._directory} has {disk.f_bavail * disk.f_frsize >> 20} MiB",
            )

    def existing(self, first: int, last: int) -> Tensor:
        """Sorted local rows of [first, last) that exist: int64."""
        return torch.nonzero(self._marks[first:last])[:, 0] + first

    def clear(self) -> None:
        """Forget every row: all are initial again, and the disk is given back."""
        for descriptor, tensor in zip(self._descriptors, (self._records, self._marks), strict=True):
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, tensor.numel() * tensor.element_size())

    def disk_bytes(self) -> int:
        """Bytes that the files take on the disk."""
        return sum(os.fstat(descriptor).st_blocks * 512 for descriptor in self._descriptors)

    def _listed(self, where: Where) -> Tensor:
        if isinstance(where, slice):
            return torch.arange(*where.indices(self._marks.numel()))
        return where.cpu()
