"""One optimiser step: micro-batches through backbone and head, then one agreed decision, to move or to skip.

Nothing moves before every rank knows that loss and gradients are finite, those of the backbone and those of
the class rows. A skipped step leaves no trace: weights, optimiser states, class rows, running statistics of
objective and batch norm are those of before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.config import TrainConfig
from mpsoftmax.data.loader import Batch
from mpsoftmax.data.pixels import to_float
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.train.culprits import Culprits, MicroBatch, find_culprits
from mpsoftmax.train.engines import Engine
from mpsoftmax.train.precision import LossScale


@dataclass(frozen=True)
class Outcome:
    """What a step came to.

    Attributes:
        loss: Scalar: mean over the step's valid samples of all ranks.
        norm: Scalar: norm of the gradient, before clipping and without loss scale.
        head_norm: Scalar: that of the class rows' part; None where it was not asked for.
        culprits: Why the step was skipped; None: it was taken.
    """

    loss: Tensor
    norm: Tensor
    head_norm: Tensor | None
    culprits: Culprits | None


class Step:
    """Takes steps.

    Args:
        config: Clipping.
        engine: The backbone.
        head: The classifier.
        comm: The ranks.
        device: Where images go.
        memory_format: Of the images.
        scale: The loss scale, which this moves.
        autocast: Under which the backbone runs; for naming samples.
        update_begins: Told when the last backward is done.
    """

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        head: ModelParallelSoftmax,
        comm: Comm,
        *,
        device: torch.device,
        memory_format: torch.memory_format,
        scale: LossScale,
        autocast: torch.dtype | None,
        update_begins: Callable[[], None],
    ) -> None:
        self._update_begins = update_begins
        self._limit, self._joint = config.clip_norm, config.clip_over == "joint"
        self._engine, self._head, self._comm, self._scale = engine, head, comm, scale
        self._device, self._memory_format, self._autocast = device, memory_format, autocast
        self._buffers = list(engine.net.buffers())
        self._kept: list[Tensor] = []

    def __call__(self, parts: Sequence[MicroBatch]) -> Outcome:
        """One step over all micro-batches of this rank; collective."""
        self._keep_buffers()
        loss = torch.zeros((), device=self._device)
        for part, weight in zip(parts, self._weights(parts), strict=True):
            loss += self._pass(part, weight, last=part is parts[-1])
        self._update_begins()
        norm, head_norm, finite = self._measure(loss)
        if finite:
            self._clip(norm)
            self._engine.step()
            self._head.step()
        else:
            self._drop()
        self._scale.update(overflowed=not finite)
        culprits = None if finite else self._find(parts)
        return Outcome(loss, norm, head_norm, culprits)

    # -- one micro-batch -------------------------------------------------------------------------

    def _pass(self, part: MicroBatch, weight: float, *, last: bool) -> Tensor:
        """Forward and backward of one micro-batch: its share of the step's loss."""
        images = self.images(part.batch)
        labels = part.batch.labels.to(self._device, non_blocking=True)
        self._head.prefetch(labels)  # rows stored elsewhere are read beside the backbone
        with self._engine.micro_batch(last=last):
            features = self._engine.forward(images)
            part.watch(features)
            loss = self._head(features.float(), labels) * weight
            scale = self._scale.value
            self._engine.backward(loss if scale == 1 else loss * scale)
        return loss.detach().to(torch.float32)

    def images(self, batch: Batch) -> Tensor:
        """What the backbone is given: float32 [b, 3, H, W]."""
        images = to_float(batch.images.to(self._device, non_blocking=True))
        return images.to(memory_format=self._memory_format)

    def _weights(self, parts: Sequence[MicroBatch]) -> list[float]:
        """Share of the step's valid samples in each micro-batch: their losses are means over those."""
        if len(parts) == 1:
            return [1.0]
        valid = torch.tensor([int((part.batch.labels >= 0).sum()) for part in parts])
        counts = self._comm.all_reduce_sum(valid.to(self._device)).tolist()
        return [count / max(1, sum(counts)) for count in counts]

    # -- the decision ----------------------------------------------------------------------------

    def _measure(self, loss: Tensor) -> tuple[Tensor, Tensor | None, bool]:
        """Norm of the gradient, the class rows' part of it, and whether all is finite on all ranks."""
        norm = self._engine.gradient_norm()
        square = self._head.gradient_square() if self._joint else loss.new_zeros(())
        fine = loss.isfinite() & norm.isfinite() & self._head.gradient_is_finite()
        # One reduction, two numbers: ranks that are not fine, and the class rows' squared norm.
        own = torch.stack([(~fine).to(torch.float64), square.to(torch.float64)])
        bad, square = self._comm.all_reduce_sum(own).unbind()
        head_norm, scale = None, self._scale.value
        if self._joint:
            head_norm = square.sqrt() / scale
            norm = torch.hypot(norm.to(torch.float64), square.sqrt()).to(norm.dtype)
        finite = bool(((bad == 0) & square.isfinite()).item())
        return norm if scale == 1 else norm / scale, head_norm, finite

    def _clip(self, norm: Tensor) -> None:
        """Take the loss scale out of the gradients, and clip them where asked: one factor for each."""
        unscale = 1.0 / self._scale.value
        factor = torch.full_like(norm, unscale)
        if self._limit is not None:
            factor = torch.clamp(self._limit / (norm + 1e-6), max=1.0) * unscale
        if self._limit is not None or unscale != 1:
            self._engine.scale_gradient(factor)
        if self._joint:
            self._head.scale_gradient(factor)
        elif unscale != 1:
            self._head.scale_gradient(unscale)

    # -- skipping --------------------------------------------------------------------------------

    def _keep_buffers(self) -> None:
        """Batch statistics move in the forward pass: a skipped step puts them back."""
        if not self._kept:
            self._kept = [buffer.clone() for buffer in self._buffers]
        elif self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def _drop(self) -> None:
        self._engine.drop_gradient()
        self._head.zero_grad()
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)

    def _find(self, parts: Sequence[MicroBatch]) -> Culprits:
        with self._engine.whole() as net:
            return find_culprits(parts, net, self.images, self._autocast, self._comm)
