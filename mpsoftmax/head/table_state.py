"""The class table into and out of a state_dict.

Row tensors are DTensors `Shard(0)` where a process group exists, so torch.distributed.checkpoint reads them
at any world size; without one they are plain tensors of all classes, which load at any world size too.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mpsoftmax.comm import Comm, local_rows
from mpsoftmax.head.class_table import ClassTable


def table_state(table: ClassTable, comm: Comm) -> dict[str, Tensor]:
    """Rows, optimiser rows, per-row steps (sharing memory with the table), and the step count."""
    rows = {
        name: comm.shard_rows(tensor, table.num_classes) for name, tensor in table.tensors().items()
    }
    return {**rows, **table.progress()}


def load_table_state(table: ClassTable, state: Mapping[str, Any]) -> None:
    """Overwrite the table with what `table_state` gave, here or at another world size.

    Raises:
        ValueError: another number of classes, a shard of another world size, or another `untouched`.
    """
    parts = {name: local_part(table, name, state[name]) for name in table.tensors()}
    progress = {name: state[name] for name in table.progress()}
    table.check_progress(**progress)
    # Nothing is overwritten before everything fits.
    for name, tensor in table.tensors().items():
        tensor.copy_(parts[name])
    table.set_progress(**progress)


def local_part(table: ClassTable, name: str, tensor: Tensor) -> Tensor:
    """This rank's rows of a saved tensor: a DTensor's local part, or the slice of a full one."""
    if tensor.shape[0] != table.num_classes:
        raise ValueError(
            f"head.{name}: {tensor.shape[0]} classes; allowed: num_classes={table.num_classes}"
        )
    local = local_rows(tensor)
    if local is tensor:
        return tensor[table.start : table.stop]
    if local.shape[0] != table.num_local:
        raise ValueError(
            f"head.{name}: a shard of {local.shape[0]} rows; allowed: {table.num_local}, the torch.chunk "
            "rule at this world size (load through torch.distributed.checkpoint to re-shard)"
        )
    return local
