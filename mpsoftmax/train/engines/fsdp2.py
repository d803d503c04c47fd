"""FSDP2 (torch's fully_shard): parameters, gradients and optimiser state cut into one part a rank.

Between passes a rank holds its part of each tensor; a block's tensors are gathered when it runs. Batch-norm
statistics and other buffers stay whole on every rank, and rank 0's count, as under ddp.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsoftmax.comm import gathered, local_rows
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
class FSDP2:
    """train.engine: fsdp2.

    Attributes:
        reshard_after_forward: Give a block's gathered parameters back after its forward pass and gather them
            again in the backward pass: less memory, one more gather.
    """

    reshard_after_forward: bool = True

    def check(self, config: Config) -> None:
        """Raise ValueError for what it cannot do."""
        if config.backbone.compile:
            raise ValueError("backbone.compile: true; allowed with train.engine: ddp only")

    def start(self, net: nn.Module, around: Surroundings) -> Engine:
        """The engine around a freshly built backbone; collective."""
        return FSDP2Engine(net, around, reshard_after_forward=self.reshard_after_forward)


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """Modules that are gathered as one: members of Sequential and ModuleList that have parameters.

    Innermost lists only, so that no block holds another; what is in none goes with the whole net.
    """
    lists = (nn.Sequential, nn.ModuleList)
    found: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, lists):
            found += [one for one in module if not any(isinstance(m, lists) for m in one.modules())]
    return [one for one in found if sum(1 for _ in one.parameters()) > 1]


class FSDP2Engine:
    """See Engine.

    Args:
        net: The backbone on its device.
        around: Where it runs.
        reshard_after_forward: See FSDP2.
    """

    def __init__(
        self, net: nn.Module, around: Surroundings, *, reshard_after_forward: bool
    ) -> None:
        self._around = around
        self._empty = deepcopy(net).to("meta")
        self.net = around.comm.fully_shard(net, blocks_of(net), reshard_after_forward)
        self.optimizer = build_optimizer(around.config.train.optimizer, self.net)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See Engine."""
        self.net.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def forward(self, images: Tensor) -> Tensor:
        """See Engine."""
        dtype, kind = self._around.autocast, self._around.device.type
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            return self.net(images)

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        loss.backward()

    def _gradients(self) -> list[Tensor]:
        """This rank's parts."""
        return [local_rows(p.grad) for p in self.net.parameters() if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """See Engine."""
        own = nn.utils.get_total_norm(self._gradients()).to(torch.float64).square()
        return self._around.comm.all_reduce_sum(own).sqrt().to(torch.float32)

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

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """See Engine: a copy, given back at the end."""
        whole = deepcopy(self._empty).to_empty(device=self._around.device)
        parameters, buffers = dict(whole.named_parameters()), dict(whole.named_buffers())
        with torch.no_grad():
            for name, part in self.net.named_parameters():
                parameters[name].copy_(gathered(part))
            for name, buffer in self.net.named_buffers():
                buffers[name].copy_(buffer)
        whole.train(self.net.training)
        yield whole

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
