"""What the training loop asks of an engine: the thing that runs, reduces and updates the backbone.

An engine owns the backbone and its optimiser; the head stays outside each. The loop calls, for every step,

    with engine.micro_batch(last=...):      once a micro-batch; gradients are reduced with the last one
        features = engine.forward(images)
        engine.backward(loss)
    engine.gradient_norm()                  of the mean gradient over all ranks, the same on all
    engine.scale_gradient(factor)           clipping and unscaling in one, where asked
    engine.step()                           or engine.drop_gradient() where the step is skipped
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config

BACKBONE, OPTIMIZER = "backbone.", "optimizer."
"""Prefixes of an engine's tensors in a checkpoint."""


@dataclass(frozen=True)
class Surroundings:
    """What an engine is started in.

    Attributes:
        config: The resolved configuration.
        comm: The ranks.
        device: Where the backbone is.
        autocast: What the products of the forward pass are lowered to; None: nothing is.
    """

    config: Config
    comm: Comm
    device: torch.device
    autocast: torch.dtype | None


class Engine(Protocol):
    """A backbone and its optimiser, run one way or another."""

    net: nn.Module
    """The backbone as it lives here: its parameters may be parts. Its buffers are whole."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Around forward and backward of one micro-batch; gradients are reduced where it is the last."""
        ...

    def forward(self, images: Tensor) -> Tensor:
        """Raw features [b, D], perhaps lowered, of float [b, 3, H, W]."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar; the gradient by the features holds a factor of world size."""
        ...

    def gradient_norm(self) -> Tensor:
        """Scalar: L2 norm of the reduced gradient as it is now, the same on all ranks. Collective."""
        ...

    def scale_gradient(self, factor: Tensor) -> None:
        """Multiply the reduced gradient by a scalar in (0, 1]; at most once a step, after `gradient_norm`."""
        ...

    def step(self) -> None:
        """Move the weights; the gradient is gone afterwards."""
        ...

    def drop_gradient(self) -> None:
        """Forget the gradient; no weight and no optimiser state has moved."""
        ...

    def set_learning_rate(self, rate: float) -> None:
        """Of every parameter, from the next step on."""
        ...

    def whole(self) -> AbstractContextManager[nn.Module]:
        """The backbone with all its weights as a plain module, to evaluate with. Collective."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What this rank adds to a checkpoint: `backbone.NAME` and `optimizer.NAME.STATE`. Collective.

        Parts as DTensors on their ranks; what all ranks share on rank 0 only. Names and whole shapes are the
        same for every engine and world size, so each loads what another saved.
        """
        ...

    def to_load(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors to be filled from a checkpoint; `stored` are empty ones of the saved optimiser's shapes."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `to_load` gave, now filled. Collective.

        Raises:
            ValueError: a name belongs to no parameter.
        """
        ...

    def close(self) -> None:
        """The run is over: let go of what outlives the engine."""
        ...


def whole_copy(
    empty: nn.Module, net: nn.Module, parameters: Iterable[tuple[str, Tensor]], device: torch.device
) -> nn.Module:
    """The net with all its weights as a plain module, where an engine holds parts of them.

    Args:
        empty: A copy on the meta device, made before the net was cut.
        net: The net as the engine holds it; its buffers are whole.
        parameters: Every parameter by name, whole.
        device: Where the copy goes.
    """
    whole = deepcopy(empty).to_empty(device=device)
    own, buffers = dict(whole.named_parameters()), dict(whole.named_buffers())
    with torch.no_grad():
        for name, value in parameters:
            own[name].copy_(value)
        for name, buffer in net.named_buffers():
            buffers[name].copy_(buffer)
    return whole.train(net.training)
