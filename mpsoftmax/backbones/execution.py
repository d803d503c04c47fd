"""How a part of a net is run: checkpointed, in full precision, or in evaluation mode."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, x: Tensor, *, checkpointing: bool) -> Tensor:
    """Return ``block(x)``; with ``checkpointing`` its activations are recomputed in backward.

    Values, gradients and batch-norm statistics are those of the plain call: the second forward
    repeats the random numbers of the first and leaves the running statistics alone.
    """
    if not checkpointing or not torch.is_grad_enabled():
        return block(x)
    if torch.compiler.is_compiling():  # traced: the graph updates a buffer once by itself
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    contexts = partial(_forward_and_recompute_contexts, block)
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=contexts))


def _forward_and_recompute_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_running_statistics(block)


@contextmanager
def _frozen_running_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norm by the batch's statistics, running ones kept: momentum 0 changes nothing.

    (Switching the tracking off would save fewer tensors than the first forward did, which
    ``torch.utils.checkpoint`` refuses.)
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, num_batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches


def lowered(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context in which products on `device` are lowered to `dtype`; None: nothing is."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast is off on ``x``'s device: for the last, narrow layers."""
    if not torch.amp.is_autocast_available(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode; on leaving, every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
