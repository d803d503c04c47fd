"""One run's tensors by name: engine, head, random generators; into and out of checkpoints."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm, is_sharded
from mpsoftmax.head.class_table import local_range
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.table_state import TOUCHED, saved_ranks
from mpsoftmax.train.checkpoint import (
    TensorStorageMetadata,
    empty_like_stored,
    read_alone,
    read_state,
    read_tensors,
    stored_tensors,
)
from mpsoftmax.train.engines.named_state import optimizer_names
from mpsoftmax.train.engines.protocol import BACKBONE, OPTIMIZER, Engine

HEAD, RNG = "head.", "rng."
GROWING = ("step_log", "merged", "objective_state")
"""Parts of the head whose size is the checkpoint's; the head itself says what does not fit."""


def run_state(engine: Engine, head: ModelParallelSoftmax, comm: Comm) -> dict[str, Tensor]:
    """What this rank saves, by name: its parts and its generators; rank 0 also what all ranks share."""
    tensors = {**random_state(comm), **engine.tensors()}
    for name, value in head.state_dict().items():
        if is_sharded(value) or name.startswith(TOUCHED) or comm.rank == 0:
            tensors[HEAD + name] = value
    return tensors


def is_copy(name: str) -> bool:
    """Whether `run_state` gives that tensor as a copy: a mapped table's rows are read for it."""
    return name.startswith((HEAD + TOUCHED, RNG))


def random_state(comm: Comm) -> dict[str, Tensor]:
    """Torch's generators of this rank (dropout draws from them)."""
    states = {f"{RNG}cpu.{comm.rank}": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"{RNG}cuda.{comm.rank}"] = torch.cuda.get_rng_state()
    return states


def load_run_state(
    path: Path,
    engine: Engine,
    kind: str,
    head: ModelParallelSoftmax,
    comm: Comm,
) -> dict[str, Any]:
    """Restore a run from a checkpoint directory, at any world size and by any engine; collective.

    Args:
        path: The checkpoint.
        engine: Gets backbone and optimiser state.
        kind: Of its optimiser: sgd or adamw.
        head: Gets its rows.
        comm: The ranks.

    Where this world size has ranks the saved one had not, their generators keep the fresh seed.

    Returns:
        The checkpoint's state.json.

    Raises:
        ValueError: the checkpoint does not fit this run; names the tensor or field.
    """
    state = read_state(path)
    if state["num_classes"] != head.num_classes:
        raise ValueError(
            f"checkpoint {path}: {state['num_classes']} classes; data.train has {head.num_classes}"
        )
    stored = stored_tensors(path)
    check_optimizer(path, kind, stored)
    wanted = engine.to_load({n: empty_like_stored(stored[n]) for n in optimizer_names(stored)})
    of_engine = list(wanted)
    for name in stored:
        if name.startswith(RNG) and name.endswith(f".{comm.rank}"):
            wanted[name] = empty_like_stored(stored[name])
    parts, of_head = head_to_load(stored, head, comm, state["world"])
    wanted |= of_head
    read_tensors(path, wanted)
    head.load_state_dict({name: wanted.get(HEAD + name, value) for name, value in parts.items()})
    engine.load({name: wanted[name] for name in of_engine})
    load_random_state(wanted, comm)
    return state


def load_head(path: Path, head: ModelParallelSoftmax, comm: Comm) -> None:
    """The head alone, with its optimiser rows, from a checkpoint directory; collective.

    Raises:
        ValueError: as `load_run_state`.
    """
    parts, wanted = head_to_load(stored_tensors(path), head, comm, read_state(path)["world"])
    read_tensors(path, wanted)
    head.load_state_dict({name: wanted.get(HEAD + name, value) for name, value in parts.items()})


def head_to_load(
    stored: Mapping[str, TensorStorageMetadata],
    head: ModelParallelSoftmax,
    comm: Comm,
    saved_world: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The head's tensors as `parts_to_load` has them; and by name in the checkpoint, those to be filled."""
    parts, wanted = parts_to_load(stored, head, comm, saved_world), {}
    for name, value in parts.items():
        saved = stored.get(HEAD + name)
        if name not in GROWING:
            wanted[HEAD + name] = value
        elif saved is not None:  # checkpoints of 0.1.0 hold no merged classes
            wanted[HEAD + name] = empty_like_stored(saved)
    return parts, wanted


def parts_to_load(
    stored: Mapping[str, TensorStorageMetadata],
    head: ModelParallelSoftmax,
    comm: Comm,
    saved_world: int,
) -> dict[str, Tensor]:
    """The head's tensors to be filled from a checkpoint, whichever storage either side has."""
    live = {
        name: value for name, value in head.state_dict().items() if not name.startswith(TOUCHED)
    }
    start, stop = head.local_range
    touched = touched_names(stored, head.num_classes, (start, stop), saved_world)
    if touched:
        rows = {name: empty_like_stored(stored[HEAD + name]) for name in touched}
        return {**rows, **{name: live[name] for name in live if name not in head.row_names}}
    for name in head.row_names:
        saved = stored.get(HEAD + name)
        if name not in live and saved is not None:  # saved from memory, wanted in a file
            local = torch.empty(stop - start, *saved.size[1:], dtype=saved.properties.dtype)
            live[name] = comm.shard_rows(local, head.num_classes)
    return live


def touched_names(
    stored: Iterable[str], num_classes: int, local: tuple[int, int], saved_world: int
) -> list[str]:
    """Parts of a mapped table that hold classes of `local`: those of saved ranks whose ranges overlap.

    A rank without classes takes the first's and keeps none of its rows.
    """
    names = [name.removeprefix(HEAD) for name in stored if name.startswith(HEAD + TOUCHED)]
    ranks = saved_ranks(names)
    ranges = {rank: local_range(num_classes, saved_world, int(rank)) for rank in ranks}
    overlapping = [
        rank for rank, (first, last) in ranges.items() if first < local[1] and local[0] < last
    ]
    wanted = overlapping or ranks[:1]
    return [name for name in names if saved_ranks([name])[0] in wanted]


def check_optimizer(path: Path, kind: str, stored: Mapping[str, Any]) -> None:
    """Raise ValueError where the checkpoint holds the state of another kind of optimiser."""
    saved = {name.rpartition(".")[2] for name in stored if name.startswith(OPTIMIZER)}
    expected = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}[kind]
    if not saved <= expected:
        raise ValueError(
            f"train.optimizer.kind: {kind}; checkpoint {path} holds {', '.join(sorted(saved))} of another "
            "kind; allowed: the kind it was saved with"
        )


def load_random_state(tensors: dict[str, Tensor], comm: Comm) -> None:
    """This rank's generators, where they were saved."""
    cpu = tensors.get(f"{RNG}cpu.{comm.rank}")
    cuda = tensors.get(f"{RNG}cuda.{comm.rank}")
    try:
        if cpu is not None:
            torch.set_rng_state(cpu)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"checkpoint: {RNG}: no state of a generator: {error}") from error


def read_backbone(path: Path) -> dict[str, Tensor]:
    """The backbone's tensors from a checkpoint directory, on the CPU; by one rank, not collective."""
    return read_alone(path, BACKBONE)


def load_backbone(path: Path, net: nn.Module) -> None:
    """The backbone alone from a checkpoint directory; collective."""
    wanted = {BACKBONE + name: value for name, value in net.state_dict().items()}
    read_tensors(path, wanted)
