"""torch.save files of others: tensors and plain values, read without running anything."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WRAPPED = ("state_dict_backbone", "state_dict", "model")
"""Keys under which files keep a network's state dict beside other things."""
MODULE = "module."


def read_file(path: Path) -> Any:
    """What a file holds, on the CPU, by torch.load(weights_only=True).

    Tensors of today's zip files are mapped, not read; files of before PyTorch 1.6 are read whole.

    Raises:
        ValueError: it cannot be read, or holds objects that could run code.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: is no file of tensors and plain values: {first}") from error


def state_dict_in(path: Path, found: Any) -> dict[str, Tensor]:
    """A network's state dict in what a file holds, without the prefix that DistributedDataParallel gives.

    Raises:
        ValueError: there is none.
    """
    if isinstance(found, dict):
        found = next((found[key] for key in WRAPPED if isinstance(found.get(key), dict)), found)
    named = isinstance(found, dict) and len(found) > 0
    if not named or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise ValueError(
            f"{path}: holds no state dict of a network; allowed: names and tensors, alone or under "
            f"{', '.join(WRAPPED)}"
        )
    every = all(name.startswith(MODULE) for name in found)
    return {name.removeprefix(MODULE) if every else name: value for name, value in found.items()}
