"""The class table into and out of a state_dict.

Of rows in memory, tensors of all classes: DTensors `Shard(0)` where a process group exists, so
torch.distributed.checkpoint reads them at any world size; without one they are plain tensors, which load at
any world size too. Of a mapped table, only rows that exist, as `touched.RANK.NAME`: plain tensors, of which
each rank has its own; a state that holds those of all ranks whose classes overlap loads at any world size and
into any storage.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mpsoftmax.comm import Comm, local_rows
from mpsoftmax.head.class_table import ClassTable

TOUCHED = "touched."


def table_state(table: ClassTable, comm: Comm) -> dict[str, Tensor]:
    """Rows, optimiser rows, per-row steps, and the step count; dense ones share memory with the table."""
    if table.storage == "mapped":
        existing = table.existing()
        rows = {f"{TOUCHED}{comm.rank}.{name}": tensor for name, tensor in existing.items()}
    else:
        rows = {
            name: comm.shard_rows(tensor, table.num_classes)
            for name, tensor in table.tensors().items()
        }
    return {**rows, **table.progress()}


def saved_ranks(names: Iterable[str]) -> list[str]:
    """The ranks that wrote touched rows, among the names of a state."""
    return sorted({name.split(".")[1] for name in names if name.startswith(TOUCHED)})


def table_names(table: ClassTable, saved: Iterable[str]) -> list[str]:
    """The names that a saved state must have: those of all rows, or of the ranks that wrote touched ones."""
    names = [
        f"{TOUCHED}{rank}.{name}" for rank in saved_ranks(saved) for name in ("ids", *table.names)
    ]
    return [*(names or table.names), *table.progress()]


def load_table_state(table: ClassTable, state: Mapping[str, Any]) -> None:
    """Overwrite the table with what `table_state` gave, here or at another world size.

    Raises:
        ValueError: another number of classes, a shard of another world size, or another `untouched`.
    """
    progress = {name: state[name] for name in table.progress()}
    table.check_progress(**progress)
    # Nothing is overwritten before everything fits.
    if saved_ranks(state):
        table.restore(touched_rows(table, state))
    else:
        parts = {name: local_part(table, name, state[name]) for name in table.names}
        table.overwrite(parts)
    table.set_progress(**progress)


def touched_rows(table: ClassTable, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Existing rows of all saved ranks in `state`, one after the other."""
    ranks, found = saved_ranks(state), {}
    for name in ("ids", *table.names):
        found[name] = torch.cat([state[f"{TOUCHED}{rank}.{name}"] for rank in ranks])
        width = found[name].shape[1:]
        if width not in ((), (table.dim,)) or len(found[name]) != len(found["ids"]):
            raise ValueError(
                f"head.{name}: shape {tuple(found[name].shape)}; allowed: [{len(found['ids'])}, {table.dim}]"
            )
    ids, num = found["ids"], table.num_classes * table.num_centres
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num):
        raise ValueError(f"head.touched: row {int(ids.max())}; allowed: 0 <= row < {num}")
    return found


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
