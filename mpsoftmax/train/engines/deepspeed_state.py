"""A DeepSpeed engine's state by parameter name: what its flat partitions hold, put together and cut again."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm
from mpsoftmax.train.engines.named_state import (
    load_named,
    named_tensors,
    named_to_load,
    optimizer_names,
    owner_of,
    trained,
)
from mpsoftmax.train.engines.protocol import BACKBONE, OPTIMIZER


class ZeroState:
    """State by name, whole on every rank while it is put together, one parameter at a time.

    Args:
        library: The imported package.
        engine: DeepSpeed's engine.
        net: The backbone in it.
        optimizer: The torch optimiser in it.
        stage: Of ZeRO.
        comm: The ranks.
    """

    def __init__(
        self,
        library: Any,
        engine: Any,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        stage: int,
        comm: Comm,
    ) -> None:
        self._library, self._engine, self._net = library, engine, net
        self._optimizer, self._stage, self._comm = optimizer, stage, comm
        self._shapes = {name: whole_shape(p) for name, p in net.named_parameters()}

    def _flat(self) -> list[Tensor]:
        """This rank's partitions, one a group."""
        zero = self._engine.optimizer
        if self._stage == 3:
            return list(zero.fp32_partitioned_groups_flat)
        return list(zero.single_partition_of_fp32_groups)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, whole; collective."""
        for name, parameter in self._net.named_parameters():
            if self._stage < 3:
                yield name, parameter.detach()
                continue
            with self._library.zero.GatheredParameters([parameter]):
                yield name, parameter.detach().clone()

    def _moments(self) -> list[str]:
        """State keys that go by element."""
        flat, state = self._flat(), self._optimizer.state
        return [k for k, v in state.get(flat[0], {}).items() if k != "step" and v is not None]

    def tensors(self, *, keep: bool) -> dict[str, Tensor]:
        """See Engine.tensors; `keep`: whether this rank writes them. Collective."""
        if self._stage == 0:
            return named_tensors(self._net, self._optimizer) if keep else {}
        out: dict[str, Tensor] = {}
        buffers = {k: v for k, v in self._net.state_dict().items() if k not in self._shapes}
        out.update({BACKBONE + name: value for name, value in buffers.items()})
        for name, value in self.parameters():
            out[BACKBONE + name] = value if keep else value.new_empty(0)
        moments = self._moments()
        for name, parameter in trained(self._net).items():
            for key in moments:
                value = self._moment(parameter, key)
                out[f"{OPTIMIZER}{name}.{key}"] = value if keep else value.new_empty(0)
        step = self._optimizer.state.get(self._flat()[0], {}).get("step")
        if step is not None:
            out.update({f"{OPTIMIZER}{name}.step": step for name in trained(self._net)})
        return out if keep else {}

    def to_load(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Engine.to_load: whole tensors."""
        if self._stage == 0:
            return named_to_load(self._net, stored)
        parameters = trained(self._net)
        for name in stored:
            owner_of(name, parameters)
        live: dict[str, Tensor] = self._net.state_dict()
        wanted = {
            BACKBONE + name: torch.empty(self._shapes.get(name) or value.shape, dtype=value.dtype)
            for name, value in live.items()
        }
        return {**wanted, **stored}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See Engine.load."""
        if self._stage == 0:
            load_named(self._net, self._optimizer, tensors)
            return
        self._load_parameters(tensors)
        names = optimizer_names(tensors)
        keys = sorted({name.rpartition(".")[2] for name in names} - {"step"})
        if not names:
            return
        steps = [tensors[name] for name in names if name.endswith(".step")]
        for flat in self._flat():
            state = self._optimizer.state[flat]
            for key in keys:
                state[key] = torch.zeros_like(flat)
            if steps:
                state["step"] = steps[0].clone()
        parameters = trained(self._net)
        for name in names:
            parameter, key = owner_of(name, parameters)
            if key != "step":
                self._set_moment(parameter, key, tensors[name].to(parameter.device))

    # Stages 1 and 2: DeepSpeed's own way to a moment misses all groups of parameters but the first.

    def _part_of(self, parameter: nn.Parameter, key: str) -> tuple[Tensor, slice] | None:
        """This rank's part of a moment, flat, and where it lies in the whole; None where it has none."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        groups = self._engine.optimizer.bit16_groups
        group = next(i for i, g in enumerate(groups) if any(one is parameter for one in g))
        here, there = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
        flat = self._optimizer.state[self._flat()[group]][key]
        part = flat.narrow(0, here.start, here.numel)
        return part, slice(there.start, there.start + there.numel)

    def _moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        """Whole, on every rank; collective."""
        if self._stage == 3:
            return self._library.utils.safe_get_full_optimizer_state(parameter, key)
        whole = torch.zeros(parameter.numel(), device=parameter.device)
        found = self._part_of(parameter, key)
        if found is not None:
            whole[found[1]] = found[0]
        return self._comm.all_reduce_sum(whole).view(parameter.shape)

    def _set_moment(self, parameter: nn.Parameter, key: str, whole: Tensor) -> None:
        if self._stage == 3:
            self._library.utils.safe_set_full_optimizer_state(parameter, whole, key)
            return
        found = self._part_of(parameter, key)
        if found is not None:
            found[0].copy_(whole.flatten()[found[1]])

    def _load_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        set_whole = self._library.utils.safe_set_full_fp32_param
        for name, parameter in self._net.named_parameters():
            value = tensors[BACKBONE + name].to(parameter.device)
            if self._stage == 3:
                with self._library.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)
            else:
                parameter.data.copy_(value)
            if parameter.requires_grad:
                set_whole(parameter, value)
        for name, buffer in self._net.named_buffers():
            if BACKBONE + name in tensors:
                buffer.copy_(tensors[BACKBONE + name])


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Of a parameter whose elements may be elsewhere."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
