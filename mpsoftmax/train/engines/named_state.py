"""State of a torch optimiser by parameter name, whole or in parts; what ddp and fsdp2 share."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mpsoftmax.comm import is_sharded
from mpsoftmax.train.engines.protocol import BACKBONE, OPTIMIZER


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def owner_of(name: str, parameters: Mapping[str, nn.Parameter]) -> tuple[nn.Parameter, str]:
    """Parameter and state key that `optimizer.NAME.KEY` stands for.

    Raises:
        ValueError: no parameter has that name.
    """
    owner, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
    if owner not in parameters:
        raise ValueError(f"checkpoint: {name} belongs to no parameter of this backbone")
    return parameters[owner], key


def named_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Backbone and optimiser state by name, as they live here."""
    tensors = {BACKBONE + name: value for name, value in net.state_dict().items()}
    for name, parameter in trained(net).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{name}.{key}"] = value
    return tensors


def of_this_rank(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What this rank writes: its parts; rank 0 also what all ranks share.

    Only rank 0's copy may be written: running batch statistics differ between ranks.
    """
    return {name: value for name, value in tensors.items() if rank == 0 or is_sharded(value)}


def named_to_load(net: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's live tensors, and new ones for the optimiser: parts where its parameter is one."""
    parameters = trained(net)
    wanted = {BACKBONE + name: value for name, value in net.state_dict().items()}
    for name, empty in stored.items():
        parameter, _ = owner_of(name, parameters)
        parted = is_sharded(parameter) and empty.shape == parameter.shape
        wanted[name] = torch.zeros_like(parameter.detach()) if parted else empty
    return wanted


def load_named(
    net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Optimiser state from `named_to_load`; the backbone's own tensors were filled in place."""
    parameters = trained(net)
    for name in optimizer_names(tensors):
        parameter, key = owner_of(name, parameters)
        value = tensors[name]
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)


def optimizer_names(names: Iterable[str]) -> list[str]:
    """Those of an optimiser's state."""
    return [name for name in names if name.startswith(OPTIMIZER)]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
