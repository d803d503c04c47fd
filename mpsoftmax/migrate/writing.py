"""A checkpoint of ours from tensors of others, by one process."""

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config, to_tree, to_yaml
from mpsoftmax.data.new_files import new_files
from mpsoftmax.train.checkpoint import Checkpoints


def mapped(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file that is unlinked already: as large as the disk, not the memory, allows."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".rows-") as file:
        size = math.prod(shape)
        file.truncate(max(1, size) * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape)


def joined(folder: Path, parts: Iterable[Tensor], num_rows: int, dtype: torch.dtype) -> Tensor:
    """Shards [c, D], one after the other, as one table [num_rows, D]."""
    table, low = None, 0
    for part in parts:
        if table is None:
            table = mapped(folder, (num_rows, part.shape[1]), dtype)
        table[low : low + len(part)] = part
        low += len(part)
    assert table is not None
    return table


def write_run(
    folder: Path, config: Config, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """A run folder that holds one checkpoint and its configuration, complete or not at all.

    Args:
        folder: A new one; config's run.dir.
        config: The configuration.
        step: Of the checkpoint.
        tensors: By the names that checkpoints have.
        state: Of state.json, what differs from a fresh run's.

    Raises:
        ValueError: the folder exists, or there is no room on the disk.
    """
    with new_files(folder) as (partial,):
        partial.mkdir()
        write_checkpoint(partial / "checkpoints", config, step, tensors, state)
        (partial / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


def write_checkpoint(
    folder: Path, config: Config, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """A checkpoint below `folder`; returns its directory."""
    whole = {
        "samples": 0,
        "world": 1,
        "num_classes": 1,
        "data": None,
        "linking": None,
        "unevaluated": False,
        "skipped": None,
        "loss_scale": None,
        "config": to_tree(config),
        **state,
    }
    return Checkpoints(folder, Comm()).save(step, dict(tensors), whole)
