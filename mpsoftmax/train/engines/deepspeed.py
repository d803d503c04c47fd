"""DeepSpeed, ZeRO 0 to 3: optimiser state (1), gradients (2) and parameters (3) cut into parts.

The head stays outside with its own optimiser. Parameters stay float32; precision is autocast inside the net.
Loss scale and clipping are the loop's, so that they span backbone and head. DeepSpeed counts one micro-batch
a step and is told where a step ends; the factor of clipping and loss scale reaches its gradients as its own
clipping, and a step that the loop skips is one whose norm it is told is not valid.
"""

import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.backbones.execution import lowered
from mpsoftmax.config import Config
from mpsoftmax.train.engines.deepspeed_config import read_config, settle
from mpsoftmax.train.engines.deepspeed_state import ZeroState
from mpsoftmax.train.engines.named_state import set_rate
from mpsoftmax.train.engines.optimizer import build_optimizer
from mpsoftmax.train.engines.protocol import Engine, Surroundings, whole_copy

VERSION = "0.19."
"""Whose insides (clipping, optimiser state by parameter) this was written against."""


@dataclass(frozen=True)
class DeepSpeed:
    """train.engine: deepspeed.

    Attributes:
        stage: Of ZeRO, 0 to 3; None: that of `config`, or 1.
        config: DeepSpeed's own configuration, as the path of its JSON file or as a mapping.
    """

    stage: int | None = None
    config: str | dict[str, Any] | None = None

    def check(self, config: Config) -> None:
        """Raise ValueError for what contradicts it."""
        settle(read_config(self.config), self.stage, config)

    def start(self, net: nn.Module, around: Surroundings) -> Engine:
        """The engine around a freshly built backbone; collective.

        Raises:
            ValueError: DeepSpeed is not installed, or is of another version.
        """
        library = around.comm.together(import_deepspeed)
        told = settle(read_config(self.config), self.stage, around.config, around.comm.world)
        return DeepSpeedEngine(library, net, around, told)


def import_deepspeed() -> Any:
    """The library, ready to use the process group that is there.

    Raises:
        ValueError: it is missing, or not the version this was written against.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        library = importlib.import_module("deepspeed")
    except ImportError as error:
        raise ValueError(
            f"train.engine: deepspeed: {error}; allowed after pip install 'mpsoftmax[deepspeed]'"
        ) from error
    if not library.__version__.startswith(VERSION):
        raise ValueError(
            f"train.engine: deepspeed: version {library.__version__} is installed; allowed: {VERSION}x "
            "(pip install 'mpsoftmax[deepspeed]')"
        )
    library.utils.logger.setLevel("ERROR")  # warns of every optimiser but its own
    # It calls collectives by the names that torch 2.13 gave up, and torch says so at every place.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    # Serves inference only, and would be compiled for a minute at the first use.
    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return library


class Lowered(nn.Module):
    """A net whose products are lowered: DeepSpeed switches an autocast around it off.

    Args:
        net: The net.
        dtype: To which; None: not.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.net, self._dtype = net, dtype

    def forward(self, images: Tensor) -> Tensor:
        """As the net."""
        with lowered(images.device, self._dtype):
            return self.net(images)


class DeepSpeedEngine:
    """See Engine.

    Args:
        library: The imported package.
        net: The backbone on its device.
        around: Where it runs.
        told: DeepSpeed's configuration.
    """

    def __init__(
        self, library: Any, net: nn.Module, around: Surroundings, told: dict[str, Any]
    ) -> None:
        self._around, self.net = around, net
        self._stage = told["zero_optimization"]["stage"]
        self._empty = deepcopy(net).to("meta") if self._stage == 3 else None
        self.optimizer = build_optimizer(around.config.train.optimizer, net)
        # It insists on being told; a process that no launcher started, or a test's, is not.
        os.environ.setdefault("LOCAL_RANK", str(around.device.index or 0))
        library.init_distributed(auto_mpi_discovery=False, verbose=False)
        self._engine = library.initialize(
            model=Lowered(net, around.autocast),
            optimizer=self.optimizer,
            config=told,
            dist_init_required=False,
        )[0]
        self._state = ZeroState(
            library, self._engine, net, self.optimizer, self._stage, around.comm
        )
        self._norm: Tensor | None = None

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See Engine."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def forward(self, images: Tensor) -> Tensor:
        """See Engine."""
        return self._engine(images)

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        self._engine.backward(loss)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.net.parameters() if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """See Engine."""
        zero = self._engine.optimizer
        if self._stage == 0:
            return nn.utils.get_total_norm(self._gradients())
        if self._stage < 3:
            norm = zero.scaled_global_norm()
        else:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            norm = combine_grad_norm_groups(zero._get_norm_groups())
        # Its mark for a norm that is not finite is a negative one.
        norm = torch.as_tensor(norm, dtype=torch.float32)
        self._norm = torch.where(norm < 0, torch.full_like(norm, float("inf")), norm)
        return self._norm

    def scale_gradient(self, factor: Tensor) -> None:
        """See Engine."""
        if self._stage == 0:
            torch._foreach_mul_(self._gradients(), factor)
            return
        assert self._norm is not None
        # Its clipping divides by (norm + 1e-6) / clip_grad where that is above 1.
        limit = float(factor) * (float(self._norm) + 1e-6)
        self._engine.optimizer.clip_grad = limit if float(factor) < 1 else 0.0

    def step(self) -> None:
        """See Engine."""
        with self._known_norm(self._norm):
            self._engine.step()
        if self._stage > 0:
            self._engine.optimizer.clip_grad = 0.0

    def drop_gradient(self) -> None:
        """See Engine."""
        if self._stage == 0:
            self._engine.zero_grad()
            return
        with self._known_norm(torch.full((), float("inf"), device=self._around.device)):
            self._engine.step()

    @contextmanager
    def _known_norm(self, norm: Tensor | None) -> Iterator[None]:
        """Its step takes this norm: not computed again, and one that is not finite makes it drop the step."""
        zero, name = self._engine.optimizer, "scaled_global_norm"
        if self._stage == 0:
            yield
            return
        if self._stage == 3:
            name = "_get_norm_groups"
            setattr(zero, name, lambda: [norm])
        else:
            setattr(zero, name, lambda norm_type=2: norm)
        try:
            yield
        finally:
            delattr(zero, name)

    def set_learning_rate(self, rate: float) -> None:
        """See Engine."""
        set_rate(self.optimizer, rate)

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """See Engine: with stage 3 a copy, given back at the end."""
        if self._empty is None:
            yield self.net
            return
        yield whole_copy(self._empty, self.net, self._state.parameters(), self._around.device)

    def tensors(self) -> dict[str, Tensor]:
        """See Engine."""
        return self._state.tensors(keep=self._around.comm.rank == 0)

    def to_load(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Engine."""
        return self._state.to_load(stored)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See Engine."""
        self._state.load(tensors)

    def close(self) -> None:
        """See Engine: its hooks, and its handles of this process group, which the next one would find."""
        from deepspeed.utils import groups

        self._engine.destroy()
        groups._release_process_group_references(group=None)
