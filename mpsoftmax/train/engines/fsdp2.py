"""FSDP2 (torch's fully_shard): parameters, gradients and optimiser state cut into one part a rank.

Between passes a rank holds its part of each tensor; a block's tensors are gathered when it runs. Batch-norm
statistics and other buffers stay whole on every rank, and rank 0's count, as under ddp.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsoftmax.comm import gathered
from mpsoftmax.config import Config
from mpsoftmax.train.engines.protocol import Engine, Surroundings, whole_copy
from mpsoftmax.train.engines.torch_engine import TorchEngine


@dataclass(frozen=True)
class FSDP2:
    """train.engine: fsdp2.

    Attributes:
        reshard_after_forward: Give a block's gathered parameters back after its forward pass and gather them
            again in the backward pass: less memory, one more gather.
    """

    reshard_after_forward: bool = True

    def check(self, config: Config) -> None:
        """Nothing contradicts it by itself."""

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


class FSDP2Engine(TorchEngine):
    """See Engine.

    Args:
        net: The backbone on its device.
        around: Where it runs.
        reshard_after_forward: See FSDP2.
    """

    def __init__(
        self, net: nn.Module, around: Surroundings, *, reshard_after_forward: bool
    ) -> None:
        self._empty = deepcopy(net).to("meta")
        super().__init__(
            around.comm.fully_shard(net, blocks_of(net), reshard_after_forward), around
        )

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See Engine."""
        self.net.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        """See Engine."""
        own = nn.utils.get_total_norm(self._gradients()).to(torch.float64).square()
        return self._around.comm.all_reduce_sum(own).sqrt().to(torch.float32)

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """See Engine: a copy, given back at the end."""
        parameters = ((name, gathered(part)) for name, part in self.net.named_parameters())
        yield whole_copy(self._empty, self.net, parameters, self._around.device)
