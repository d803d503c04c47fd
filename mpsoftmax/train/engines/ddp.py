"""DistributedDataParallel: every rank holds the whole backbone. The engine that defines the others."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpsoftmax.config import Config
from mpsoftmax.train.engines.protocol import Engine, Surroundings
from mpsoftmax.train.engines.torch_engine import TorchEngine


@dataclass(frozen=True)
class DDP:
    """train.engine: ddp."""

    def check(self, config: Config) -> None:
        """Nothing contradicts it."""

    def start(self, net: nn.Module, around: Surroundings) -> Engine:
        """The engine around a freshly built backbone; collective."""
        return DDPEngine(net, around)


class DDPEngine(TorchEngine):
    """See Engine; alone (world size 1) the bare net, the same code.

    Args:
        net: The backbone on its device.
        around: Where it runs.
    """

    def __init__(self, net: nn.Module, around: Surroundings) -> None:
        if around.config.backbone.compile:
            net.compile()  # in place: names of parameters stay
        super().__init__(net, around)
        self._called = around.comm.data_parallel(net)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See Engine."""
        wrapped = self._called
        local = isinstance(wrapped, DistributedDataParallel) and not last
        return wrapped.no_sync() if local else nullcontext()  # type: ignore[operator]

    def gradient_norm(self) -> Tensor:
        """See Engine."""
        return nn.utils.get_total_norm(self._gradients())

    def whole(self) -> AbstractContextManager[nn.Module]:
        """See Engine."""
        return nullcontext(self.net)
