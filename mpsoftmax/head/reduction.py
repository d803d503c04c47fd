"""Collective (2): the row statistics of all shards, on their way while the sweep takes its last product."""

import torch
from torch import Tensor

from mpsoftmax.comm import Comm, Pending
from mpsoftmax.head.derivatives import Reduced
from mpsoftmax.kernels.problem import Counts, Swept, finite


class Reduction:
    """Row statistics summed over the shards.

    With a static shift, total, target cosine and counts are summed: two numbers a sample for most. With a
    running maximum that is one more number a sample, gathered instead of summed.

    Args:
        comm: The ranks.
        cosine: [n] this shard's target cosines; None where they are reduced already.
        chosen: int64 [m] the samples that met their negatives; None: all n.
    """

    def __init__(self, comm: Comm, cosine: Tensor | None, chosen: Tensor | None) -> None:
        self._comm, self._cosine, self._chosen = comm, cosine, chosen
        self._swept: Swept | None = None
        self._pending: Pending | None = None

    def start(self, swept: Swept) -> None:
        """Send this shard's sums of m samples, final now; the kernel calls it. Collective."""
        counts = swept.counts.stacked()
        columns = [
            swept.total,
            *([] if counts is None else counts),
            *([] if self._cosine is None else [self._cosine]),
        ]
        self._swept, self._sizes = swept, [column.numel() for column in columns]
        if swept.maximum is None:
            self._pending = self._comm.start_all_reduce_sum(torch.cat(columns))
        else:
            self._pending = self._comm.start_all_gather(torch.cat([swept.maximum, *columns]))

    def finish(self) -> tuple[Reduced, Counts]:
        """The statistics of all shards; an empty target cosine where it was reduced already."""
        assert self._swept is not None
        assert self._pending is not None
        swept, sizes, arrived = self._swept, self._sizes, self._pending.wait()
        if swept.maximum is None:
            summed = list(arrived.split(sizes))
            total, maximum = summed[0], torch.full_like(summed[0], swept.problem.shift or 0.0)
        else:
            maxima, rest = arrived[:, : sizes[0]], arrived[:, sizes[0] :]
            maximum = finite(maxima.amax(0))
            summed = list(rest.sum(0).split(sizes))
            total = (rest[:, : sizes[0]] * torch.exp(maxima - maximum)).sum(0)
        num_counts = len(sizes) - 1 - (self._cosine is not None)
        numbers = torch.stack(summed[1 : 1 + num_counts]) if num_counts else None
        t = swept.total.new_empty(0) if self._cosine is None else summed[-1]
        return Reduced(total, maximum, t, self._chosen), swept.counts.restored(numbers)
