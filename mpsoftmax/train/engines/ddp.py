"""DistributedDataParallel: every rank holds the whole backbone. The engine that defines the others."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpsoftmax.config import Config
from mpsoftmax.train.engines.named_state import (
    load_named,
    named_tensors,
    named_to_load,
    of_this_rank,
    set_rate,
)
from mpsoftmax.train.engines.optimizer import build_optimizer
from mpsoftmax.train.engines.protocol import Engine, Surroundings


@dataclass(frozen=True)
class DDP:
    """train.engine: ddp."""

    def check(self, config: Config) -> None:
        """Nothing contradicts it."""

    def start(self, net: nn.Module, around: Surroundings) -> Engine:
        """The engine around a freshly built backbone; collective."""
        return DDPEngine(net, around)


class DDPEngine:
    """See Engine; alone (world size 1) the bare net, the same code.

    Args:
        net: The backbone on its device.
        around: Where it runs.
    """

    def __init__(self, net: nn.Module, around: Surroundings) -> None:
        self.net, self._around = net, around
        if around.config.backbone.compile:
            net.compile()  # in place: names of parameters stay
        self.optimizer = build_optimizer(around.config.train.optimizer, net)
        self._wrapped = around.comm.data_parallel(net)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See Engine."""
        wrapped = self._wrapped
        local = isinstance(wrapped, DistributedDataParallel) and not last
        return wrapped.no_sync() if local else nullcontext()  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        """See Engine."""
        dtype, kind = self._around.autocast, self._around.device.type
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            return self._wrapped(images)

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        loss.backward()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.net.parameters() if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """See Engine."""
        return nn.utils.get_total_norm(self._gradients())

    def scale_gradient(self, factor: Tensor) -> None:
        """See Engine."""
        gradients = self._gradients()
        if gradients:
            torch._foreach_mul_(gradients, factor.to(gradients[0].device))

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

    def whole(self) -> AbstractContextManager[nn.Module]:
        """See Engine."""
        return nullcontext(self.net)

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
