"""Backbones in .safetensors: raw tensors and a JSON header, nothing that could run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.config import Config
from mpsoftmax.models.header import KEY, read_header
from mpsoftmax.models.trust import check_trusted
from mpsoftmax.train.build import build_net


def open_safetensors(path: Path, *, trust_code: bool) -> tuple[nn.Module, Config, dict[str, Any]]:
    """The backbone of a file that `mpsoftmax export` wrote, on the CPU; its configuration; its header.

    Raises:
        ValueError: damaged, not such a file, tensors that are not the backbone's, or a backbone that is code
            without ``trust_code``.
    """
    tensors, metadata = read_safetensors(path)
    tree, config = read_header(metadata.get(KEY), str(path))
    check_trusted(config, str(path), trust_code)
    if ":" not in config.backbone.name:  # before memory is taken for whatever the header asks
        with torch.device("meta"):
            check_fits(path, tensors, build_net(config))
    net = build_net(config)
    check_fits(path, tensors, net)
    net.load_state_dict(tensors)
    return net, config, tree


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata.

    Raises:
        ValueError: it cannot be read, or safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(
            f"{path}: safetensors is not installed (pip install safetensors)"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: .safetensors expected, damaged or no such file: {error}"
        ) from error


def check_fits(path: Path, tensors: dict[str, Tensor], net: nn.Module) -> None:
    """Raise ValueError unless the tensors are those of the net by name, shape and kind of number."""
    wanted = net.state_dict()
    different = sorted(set(wanted) ^ set(tensors))
    if different:
        kind = "missing" if different[0] in wanted else "not the backbone's"
        raise ValueError(f"{path}: tensor {different[0]} is {kind} ({len(different)} differ)")
    for name, tensor in wanted.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            raise ValueError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}; the backbone has "
                f"{tensor.dtype} {list(tensor.shape)}"
            )
