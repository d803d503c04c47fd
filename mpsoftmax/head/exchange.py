"""Collective (1): features, norms, labels and each rank's status, packed into one all-gather.

Wire format, per rank: `capacity + 1` lines of equal width. Line 0 is a header of three int64 (status, number
of samples, what was wrong); every other line is label int64 | norm (accumulate dtype, 8 bytes reserved) |
unit feature [D] in the compute dtype, padded to 8 bytes. A rank whose input is unusable still takes part and
says so in its header, so every rank raises and none hangs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.kernels.problem import NORM_FLOOR

IGNORED = -1
PREFIX_BYTES = 16
OK, BAD_FEATURES, BAD_LABELS, OVER_CAPACITY = range(4)


@dataclass(frozen=True)
class LocalBatch:
    """This rank's samples, normalised."""

    unit: Tensor
    """[b, D] accumulate dtype."""
    norm: Tensor
    """[b] accumulate dtype."""
    labels: Tensor
    """int64 [b]."""


@dataclass(frozen=True)
class GlobalBatch:
    """The valid samples of all ranks, in rank order; the same on all ranks."""

    unit: Tensor
    """[n, D] compute dtype."""
    norm: Tensor
    """[n] accumulate dtype."""
    labels: Tensor
    """int64 [n], all in [0, num_classes)."""
    slots: Tensor | None
    """int64 [n]: place of each sample among the world * capacity lines; None if every line is valid."""
    capacity: int
    """Lines a rank."""


def normalise(features: Tensor, labels: Tensor, dtype: torch.dtype) -> LocalBatch:
    """Unit features and norms in `dtype`; a zero feature stays zero."""
    features = features.detach().to(dtype)
    norm = torch.linalg.vector_norm(features, dim=1)
    return LocalBatch(features / norm.clamp_min(NORM_FLOOR)[:, None], norm, labels)


def line_bytes(dim: int, dtype: torch.dtype) -> int:
    """Width of one line on the wire."""
    return max(24, PREFIX_BYTES + -(-dim * dtype.itemsize // 8) * 8)


def input_status(
    features: Tensor, labels: Tensor, dim: int, capacity: int | None
) -> tuple[int, int]:
    """(status code, offending number) of this rank's input."""
    if features.ndim != 2 or features.shape[1] != dim or not features.is_floating_point():
        return BAD_FEATURES, features.shape[-1] if features.ndim else 0
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape != features.shape[:1] or not integral:
        return BAD_LABELS, labels.numel()
    if capacity is not None and features.shape[0] > capacity:
        return OVER_CAPACITY, features.shape[0]
    return OK, 0


class Exchange:
    """Packs, gathers and checks batches of one head.

    Args:
        comm: The ranks.
        dim: Embedding dimension D.
        num_classes: Labels must be -1 (ignored) or in [0, num_classes).
        dtype: Compute dtype, also the features' dtype on the wire.
        capacity: Largest local batch, or None: sizes are exchanged first, with a collective of their own.
    """

    def __init__(
        self, comm: Comm, dim: int, num_classes: int, dtype: torch.dtype, capacity: int | None
    ) -> None:
        self.comm, self.dim, self.num_classes = comm, dim, num_classes
        self.dtype, self.capacity = dtype, capacity

    def gather(self, features: Tensor, labels: Tensor) -> tuple[LocalBatch, GlobalBatch]:
        """All ranks' valid samples.

        Args:
            features: [b, D] raw; b may be 0 and differ between ranks.
            labels: integers [b].

        Raises:
            ValueError: on all ranks alike, if any rank's input is unusable or any label out of range.
        """
        device = features.device
        accumulate = torch.float64 if self.dtype == torch.float64 else torch.float32
        status, detail = input_status(features, labels, self.dim, self.capacity)
        num = features.shape[0] if status == OK else 0
        header = torch.tensor([status, num, detail], dtype=torch.int64, device=device)
        capacity = self.capacity
        if capacity is None:
            capacity = int(self.comm.all_gather(header)[:, 1].max())
        if status != OK:
            features, labels = features.new_zeros(0, self.dim), labels.new_zeros(0)
        local = normalise(features, labels.to(torch.int64), accumulate)
        lines = self._pack(header, local, capacity)
        gathered = self.comm.all_gather(lines)
        self._check_headers(gathered[:, 0, :24].contiguous().view(torch.int64))
        return local, self._unpack(gathered, accumulate, capacity)

    def gather_labels(self, labels: Tensor) -> Tensor:
        """int64 [n]: the usable labels of all ranks; `gather` refuses the others when it sees them."""
        labels = labels.reshape(-1).to(torch.int64)
        if self.capacity is None:
            everyone = self.comm.all_gather_rows(labels)
        else:
            padded = torch.full((self.capacity,), IGNORED, dtype=torch.int64, device=labels.device)
            padded[: labels.numel()] = labels[: self.capacity]
            everyone = self.comm.all_gather(padded).reshape(-1)
        return everyone[(everyone >= 0) & (everyone < self.num_classes)]

    def _pack(self, header: Tensor, local: LocalBatch, capacity: int) -> Tensor:
        width = line_bytes(self.dim, self.dtype)
        lines = torch.zeros(capacity + 1, width, dtype=torch.uint8, device=header.device)
        lines[0, :24] = header.view(torch.uint8)
        num = local.labels.shape[0]
        labels = torch.full((capacity,), IGNORED, dtype=torch.int64, device=header.device)
        labels[:num] = local.labels
        lines[1:, :8] = labels[:, None].view(torch.uint8)
        norm_bytes = local.norm.element_size()
        lines[1 : num + 1, 8 : 8 + norm_bytes] = local.norm[:, None].view(torch.uint8)
        payload = local.unit.to(self.dtype).contiguous().view(torch.uint8)
        lines[1 : num + 1, PREFIX_BYTES : PREFIX_BYTES + self.dim * self.dtype.itemsize] = payload
        return lines

    def _unpack(self, gathered: Tensor, accumulate: torch.dtype, capacity: int) -> GlobalBatch:
        world, _, width = gathered.shape
        lines = gathered[:, 1:].reshape(world * capacity, width)
        labels = lines[:, :8].contiguous().view(torch.int64)[:, 0]
        self._check_labels(labels, capacity)
        slots = None
        if bool((labels == IGNORED).any()):
            slots = torch.nonzero(labels != IGNORED)[:, 0]
            lines, labels = lines[slots], labels[slots]
        norm = lines[:, 8 : 8 + accumulate.itemsize].contiguous().view(accumulate)[:, 0]
        payload = lines[:, PREFIX_BYTES : PREFIX_BYTES + self.dim * self.dtype.itemsize]
        unit = payload.contiguous().view(self.dtype)
        return GlobalBatch(unit, norm, labels, slots, capacity)

    def _check_headers(self, headers: Tensor) -> None:
        for rank, (status, _, detail) in enumerate(headers.tolist()):
            if status == BAD_FEATURES:
                raise ValueError(
                    f"features: rank {rank} brought a last dimension of {detail}; allowed: a floating "
                    f"point tensor [batch, {self.dim}]"
                )
            if status == BAD_LABELS:
                raise ValueError(
                    f"labels: rank {rank} brought {detail} values; allowed: one integer a feature row"
                )
            if status == OVER_CAPACITY:
                raise ValueError(
                    f"features: rank {rank} brought {detail} samples; allowed: at most "
                    f"batch_capacity={self.capacity}"
                )

    def _check_labels(self, labels: Tensor, capacity: int) -> None:
        bad = (labels < IGNORED) | (labels >= self.num_classes)
        if bool(bad.any()):
            slot = int(torch.nonzero(bad)[0, 0])
            raise ValueError(
                f"labels: {int(labels[slot])} on rank {slot // capacity} at position {slot % capacity}; "
                f"allowed: 0 <= label < {self.num_classes}, or -1 to ignore the sample"
            )

    def own(self, values: Tensor, batch: GlobalBatch) -> Tensor:
        """This rank's part [capacity, ...] of values [n, ...] known for all valid samples."""
        return self.spread(values, batch)[self.comm.rank]

    def spread(self, values: Tensor, batch: GlobalBatch) -> Tensor:
        """[n, ...] values of the valid samples -> [world, capacity, ...], zeros elsewhere."""
        if batch.slots is not None:
            lines = values.new_zeros(self.comm.world * batch.capacity, *values.shape[1:])
            values = lines.index_copy_(0, batch.slots, values)
        return values.view(self.comm.world, batch.capacity, *values.shape[1:])
