"""What ddp and fsdp2 share: autograd passes backward, and a torch optimiser holds state by parameter."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpsoftmax.backbones.execution import lowered
from mpsoftmax.comm import local_rows
from mpsoftmax.train.engines.named_state import (
    load_named,
    named_tensors,
    named_to_load,
    of_this_rank,
    set_rate,
)
from mpsoftmax.train.engines.optimizer import build_optimizer
from mpsoftmax.train.engines.protocol import Surroundings


class TorchEngine:
    """See Engine; what is left to the engines is how gradients are reduced and what a whole net is.

    Args:
        net: The backbone, whose parameters may be parts by now.
        around: Where it runs.
    """

    def __init__(self, net: nn.Module, around: Surroundings) -> None:
        self.net, self._around = net, around
        self.optimizer = build_optimizer(around.config.train.optimizer, net)
        self._called = net
        """What is called on images: the net, or what wraps it."""

    def forward(self, images: Tensor) -> Tensor:
        """See Engine."""
        with lowered(self._around.device, self._around.autocast):
            return self._called(images)

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        loss.backward()

    def _gradients(self) -> list[Tensor]:
        """What this rank holds of them."""
        return [local_rows(p.grad) for p in self.net.parameters() if p.grad is not None]

    def scale_gradient(self, factor: Tensor) -> None:
        """See Engine."""
        gradients = self._gradients()
        if gradients:
            torch._foreach_mul_(gradients, factor.to(gradients[0].device, gradients[0].dtype))

    def step(self) -> None:
        """See Engine."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def drop_gradient(self) -> None:
        """See Engine."""
        self.optimizer.zero_grad()

    def set_learning_rate(self, rate: float) -> None:
        """See Engine."""
        set_rate(self.optimizer, rate)

    def tensors(self) -> dict[str, Tensor]:
        """See Engine."""
        return of_this_rank(named_tensors(self.net, self.optimizer), self._around.comm.rank)

    def to_load(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Engine."""
        return named_to_load(self.net, stored)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See Engine."""
        load_named(self.net, self.optimizer, tensors)

    def close(self) -> None:
        """See Engine: nothing does."""
