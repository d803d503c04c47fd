"""Class rows straight from a checkpoint, some at a time: the table need not fit into memory twice, nor once.

A checkpoint holds dense tables in the pieces its ranks wrote, which are read one after the other, and mapped
ones as the rows that were touched, a rank's at a time, between which initial rows are made anew. Rows of
`untouched: lazy` tables lag behind; a head catches them up.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsoftmax.config import Config, from_tree
from mpsoftmax.head.class_table import local_range
from mpsoftmax.head.initial_rows import initial_rows
from mpsoftmax.head.table_state import TOUCHED, saved_ranks
from mpsoftmax.train.build import build_head, head_parts
from mpsoftmax.train.checkpoint import read_alone, read_state, stored_tensors
from mpsoftmax.train.checkpoint_index import read_index
from mpsoftmax.train.state import HEAD

BLOCK_CLASSES = 4096


@dataclass(frozen=True)
class StoredTable:
    """The class table of a checkpoint.

    Attributes:
        num_classes: Classes.
        num_centres: K rows a class.
        dim: D.
        merged: (class that keeps its row, class merged into it), by pairs.
        blocks: Rows float32 [n, K, D] of consecutive classes, from class 0 to the last; to be read once.
    """

    num_classes: int
    num_centres: int
    dim: int
    merged: list[tuple[int, int]]
    blocks: Iterator[Tensor]


def stored_table(path: Path) -> StoredTable:
    """Open the class table of an undamaged checkpoint directory, whatever world size and storage wrote it.

    Raises:
        ValueError: it holds none, or one of another shape than its configuration says.
    """
    state = read_state(path)
    config, num = from_tree(state["config"]), state["num_classes"]
    stored = {
        name.removeprefix(HEAD): tuple(one.size)
        for name, one in stored_tensors(path).items()
        if name.startswith(HEAD)
    }
    ranks = saved_ranks(stored)
    if "weight" not in stored and not ranks:
        raise ValueError(f"checkpoint {path}: holds no class rows")
    dim, centres = config.backbone.embedding_dim, head_parts(config, (num,))["weights"].num_centres
    between = () if centres == 1 else (centres,)
    if "weight" in stored and stored["weight"] != (num, *between, dim):
        raise ValueError(
            f"checkpoint {path}: head.weight is {stored['weight']}; expected {(num, *between, dim)}"
        )
    if is_lazy(path, stored):
        rows = caught_up(path, config, state["data"])
    elif ranks:
        rows = touched(path, config, num * centres, state["world"], ranks)
    else:
        rows = pieces(path, f"{HEAD}weight")
    merged = read_alone(path, f"{HEAD}merged")[""].tolist() if "merged" in stored else []
    return StoredTable(num, centres, dim, merged, in_blocks(rows, centres, dim))


def is_lazy(path: Path, stored: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether rows lag behind: the settings of every step are kept for them."""
    num_logged = stored.get("step_log", (0,))[0]
    return num_logged > 0 and num_logged == int(read_alone(path, f"{HEAD}num_steps")[""])


def pieces(path: Path, name: str) -> Iterator[Tensor]:
    """A stored tensor, one of its pieces after the other along dim 0; by one rank, not collective."""
    index = read_index(path)
    entry = index.state_dict_metadata[name]
    places: dict[tuple[str, tuple[int, ...]], Any] = {
        (one.fqn, tuple(one.offset or ())): place for one, place in index.storage_data.items()
    }
    for chunk in sorted(entry.chunks, key=lambda one: tuple(one.offsets)):  # type: ignore[union-attr]
        if any(chunk.offsets[1:]):
            raise ValueError(f"checkpoint {path}: {name} is cut across its rows")
        place = places[name, tuple(chunk.offsets)]
        with (path / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            data = io.BytesIO(file.read(place.length))
        piece = torch.load(data, map_location="cpu", weights_only=True)
        if not isinstance(piece, Tensor) or piece.shape != chunk.sizes:
            raise ValueError(f"checkpoint {path}: {name}: a piece is not what the index says")
        yield piece


def touched(
    path: Path, config: Config, num_rows: int, saved_world: int, ranks: Sequence[str]
) -> Iterator[Tensor]:
    """All rows of a mapped table: initial ones, and over them those that were written."""
    dim, std, seed = config.backbone.embedding_dim, config.head.init_std, config.train.seed
    num_classes = read_state(path)["num_classes"]
    centres = num_rows // num_classes
    for rank in range(saved_world):
        start, stop = (end * centres for end in local_range(num_classes, saved_world, rank))
        ids, weight = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dim)
        if str(rank) in ranks:
            prefix = f"{HEAD}{TOUCHED}{rank}."
            ids, weight = (read_alone(path, prefix + name)[""] for name in ("ids", "weight"))
        for first in range(start, stop, BLOCK_CLASSES):
            last = min(first + BLOCK_CLASSES, stop)
            rows = torch.from_numpy(initial_rows(first, last, dim, seed, std).copy())
            here = (ids >= first) & (ids < last)
            rows[ids[here] - first] = weight[here].float()
            yield rows


def caught_up(path: Path, config: Config, data: Mapping[str, Any] | None) -> Iterator[Tensor]:
    """Rows of a lazy table as of its last step, by a head that holds the whole of it."""
    num = read_state(path)["num_classes"]
    sizes = [one["num_classes"] for one in (data or {}).get("datasets", [])] or [num]
    in_memory = replace(config, head=replace(config.head, storage="device", storage_dir=None))
    head = build_head(in_memory, sizes, 1, torch.device("cpu"))
    head.load_state_dict(read_alone(path, HEAD))
    for first in range(0, num, BLOCK_CLASSES):
        yield head.class_rows(torch.arange(first, min(first + BLOCK_CLASSES, num)))


def in_blocks(rows: Iterator[Tensor], centres: int, dim: int) -> Iterator[Tensor]:
    """Blocks float32 [n, K, D] of at most 4,096 classes."""
    for piece in rows:
        for block in piece.reshape(-1, centres, dim).split(BLOCK_CLASSES):
            yield block.float()
