"""The class table: the rows of this rank, their optimiser state, and how both change.

Rows are initialised by class id, so the table is the same at every world size and no two shards start
alike. A class has one row, or K that follow each other (sub-centres). Only touched rows move in a step; the
others stay `frozen`, or are caught up `lazy` when they are next needed, exactly as if every step had updated
them with a zero gradient.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.head.history import CatchUp, GrowingArray, StepHistory
from mpsoftmax.head.initial_rows import INIT_CHUNK_ROWS, initial_rows, initial_rows_of
from mpsoftmax.head.rounding import StochasticRounding
from mpsoftmax.head.row_optim import Hyper, RowRule
from mpsoftmax.head.row_store import DenseStore, MappedStore, take
from mpsoftmax.head.row_window import (
    HeldWindow,
    Parts,
    ResidentWindow,
    Round,
    RowTraffic,
    Window,
    nearest,
)
from mpsoftmax.head.sorted_ids import place_of
from mpsoftmax.head.tile_move import project, tile_move
from mpsoftmax.head.update_stream import CallersStream, UpdateStream
from mpsoftmax.kernels.blocked import block_size
from mpsoftmax.kernels.problem import NORM_FLOOR
from mpsoftmax.kernels.select import Kernel

UNTOUCHED = ("frozen", "lazy")
MOVE_ROWS = 256  # rows moved at once: gradient, row and momentum stay in cache over all passes

GradientTile = Callable[[int, int, Tensor], Tensor]
"""(start, stop, out [n, D]) -> gradient of the loss by those rows at constant norm, in `out`."""

MoveInPlace = Callable[[Tensor, Sequence[Tensor], Hyper, Tensor], None]
"""(weight [num_rows, D], states, numbers of the rule, age int64 [n]): moves n rows and their states."""


def local_range(num_classes: int, world: int, rank: int) -> tuple[int, int]:
    """(first, one past last) class of a rank by the torch.chunk rule, hence DTensor's Shard(0)."""
    size = -(-num_classes // world)
    return min(num_classes, rank * size), min(num_classes, (rank + 1) * size)


class ClassTable:
    """Weight and optimiser rows of classes [start, stop).

    Args:
        num_classes: Classes over all ranks.
        dim: Embedding dimension D.
        local: (start, stop) class ids of this rank.
        dtype: Row dtype: float32, float64 or bfloat16 (then with stochastic rounding).
        device: Where kernels run.
        seed: Key of the initial rows and of rounding.
        init_std: Standard deviation of the initial rows.
        rule: The row-wise optimiser.
        untouched: "frozen" or "lazy".
        num_centres: K, rows of a class.
        storage: "device", "host" or "mapped" (row_store.py).
        directory: Where a mapped table's file lies.
        stream: Where updates of rows on the device run; None: where everything else does. Whoever asks for
            rows by this class waits for them.
        kernel: What sweeps the rows: it may have code of its own to move a tile of them; None: torch's.

    Attributes:
        work_dtype: In which rows move: the row dtype, or float32 for bfloat16 rows.
        num_steps: Steps taken so far.
        version: Counts what moved rows: a forward's record is of one version.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        local: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        init_std: float,
        rule: RowRule,
        untouched: str,
        num_centres: int = 1,
        storage: str = "device",
        directory: Path | None = None,
        stream: UpdateStream | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self.stream = CallersStream() if stream is None else stream
        self.num_classes, self.dim, self.num_centres = num_classes, dim, num_centres
        self.start, self.stop = local
        self.dtype, self.device, self.storage = dtype, device, storage
        self.rule, self.lazy = rule, untouched == "lazy"
        self._seed, self._init_std = seed, init_std
        self.work_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        self._move = tile_move(kernel, rule, self.work_dtype)
        self.store = self._open_store(directory)
        self._traffic = None if self.store.resident else RowTraffic(self.store, dtype)
        self._held: Held | None = None
        self.num_steps = 0
        self.version = 0
        self._hyper_log = GrowingArray(len(rule.hyper))
        self._history = StepHistory(1 + len(rule.buffers))

    def _open_store(self, directory: Path | None) -> DenseStore | MappedStore:
        seed, std = self._seed, self._init_std
        offset, num_states = self.start * self.num_centres, len(self.rule.buffers)
        numbers = (self.num_rows, self.dim, num_states, self.dtype, self.device)

        def initial_range(first: int, last: int) -> np.ndarray:
            return initial_rows(offset + first, offset + last, self.dim, seed, std)

        def initial_of(index: np.ndarray) -> np.ndarray:
            return initial_rows_of(index + offset, self.dim, seed, std)

        if self.storage == "mapped":
            assert directory is not None
            return MappedStore(directory, *numbers, initial_of)
        on_host = self.storage == "host"
        return DenseStore(*numbers, initial_range, INIT_CHUNK_ROWS, on_host=on_host)

    @property
    def resident(self) -> bool:
        """Whether the rows lie beside the kernels."""
        return self.store.resident

    @property
    def dense(self) -> DenseStore:
        """The rows as tensors on the device.

        Raises:
            TypeError: they are stored elsewhere.
        """
        if not isinstance(self.store, DenseStore) or not self.store.resident:
            raise TypeError(f"the class rows are stored on {self.storage!r}, not on the device")
        self.stream.join()
        return self.store

    @property
    def weight(self) -> Tensor:
        """[num_rows, D] rows as of the step in `row_step`; those of a class follow each other."""
        return self.dense.weight

    @property
    def row_step(self) -> Tensor:
        """int64 [num_rows]. Frozen: updates this row has had. Lazy: the step it is current to."""
        return self.dense.row_step

    def empty(self, *shape: int) -> Tensor:
        """Zeros of the rows' dtype on the device."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @property
    def num_local(self) -> int:
        """Classes on this rank."""
        return self.stop - self.start

    @property
    def num_rows(self) -> int:
        """Rows on this rank."""
        return self.num_local * self.num_centres

    def rows_of(self, classes: Tensor | None) -> Tensor | None:
        """Local rows int64 [n K] of local classes [n]; None (all) of None."""
        if classes is None or self.num_centres == 1:
            return classes
        centres = torch.arange(self.num_centres, device=classes.device)
        return (classes[:, None] * self.num_centres + centres).reshape(-1)

    # -- reading ---------------------------------------------------------------------------------

    def current_rows(self, where: Tensor | slice | None) -> Tensor:
        """Rows as of now: [n, D]. All of them as a view where none lags behind, else a copy.

        Args:
            where: int64 [n] local rows, a slice, or None for all.
        """
        if self._traffic is not None:
            where = slice(None) if where is None else where
            return self._from_elsewhere(where).to(self.dtype)
        weight, row_step = self.weight, self.row_step
        if where is None:
            if not self._lagging(row_step):
                return weight
            where = slice(None)
        row_step = take(row_step, where)
        if not self._lagging(row_step):
            return take(weight, where)
        catch_up = CatchUp(self._history, row_step, self.work_dtype)
        rows = self.empty(row_step.numel(), self.dim)
        everything = ResidentWindow(self.dense, where, self.work_dtype)
        for low in range(0, len(rows), MOVE_ROWS):
            high = min(low + MOVE_ROWS, len(rows))
            rows[low:high] = catch_up(0, everything.stored(low, high), low, high)
        return rows

    def hold(self, rows: Tensor) -> None:
        """Keep these rows (int64 [n], ascending) at hand until the next update; stored rows only."""
        if self._traffic is not None:
            self._held = Held(rows, *self._now(rows))

    def read_ahead(self, rows: Tensor) -> None:
        """Begin to read the rows that the next `hold` will ask for; stored rows only."""
        if self._traffic is not None:
            self._traffic.ahead(rows)

    def taken_ahead(self) -> int:
        """Rows that were read ahead and used since this was last asked."""
        return 0 if self._traffic is None else self._traffic.taken_ahead()

    def _from_elsewhere(self, where: Tensor | slice) -> Tensor:
        held = self._held
        if held is not None and isinstance(where, Tensor):
            if torch.equal(where, held.index):
                return held.parts[0]
            place = place_of(where, held.index)
            if bool((place >= 0).all()):
                return held.parts[0].index_select(0, place)
        return self._now(where)[0][0]

    def _now(self, where: Tensor | slice) -> tuple[Parts, Tensor]:
        """Rows and states as of now, in the work dtype, and the steps they are stored with."""
        assert self._traffic is not None
        parts, row_step = self._traffic.read(where)
        parts = [part.to(self.work_dtype) for part in parts]
        if self._lagging(row_step):
            catch_up = CatchUp(self._history, row_step, self.work_dtype)
            parts = [catch_up(part, parts, 0, len(parts[0])) for part in range(len(parts))]
        return parts, row_step

    def _lagging(self, row_step: Tensor) -> bool:
        return self.lazy and bool((row_step < self.num_steps).any())

    # -- moving ----------------------------------------------------------------------------------

    def update(
        self,
        index: Tensor | None,
        gradient: GradientTile,
        norms: Tensor,
        group: Mapping[str, Any],
    ) -> None:
        """One optimiser step on some rows, tile by tile.

        The gradient of a tile exists only while that tile is updated. The loss does not depend on the norm
        of a row, so the gradient is projected onto the row's tangent space.

        Args:
            index: int64 [n] local rows, sorted; None for all.
            gradient: Writes a tile of it.
            norms: [n] norms of the rows as of now (see current_rows).
            group: The optimiser's parameter group as it is in this step.
        """
        hyper = self.rule.numbers(group)
        num_rows = self.num_rows if index is None else index.numel()
        window, step = self._window(index)
        squares = norms.to(self.work_dtype).square()[:, None]
        for first, last, tile in self._tiles(num_rows, gradient):
            for low in range(first, last, MOVE_ROWS):
                high = min(low + MOVE_ROWS, last)
                part = tile[low - first : high - first]
                rows, *states = window.open(low, high)
                self._move(rows, states, part, squares[low:high], hyper, step[low:high])
                window.put(low, high, [rows, *states])
        window.close(step)
        self._end_update(hyper)

    def _tiles(self, num_rows: int, gradient: GradientTile) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, one past the last, gradient [n, D]) tile by tile, all in the same memory."""
        size = block_size(self.dim, self.work_dtype, self.device)
        # Whole classes: E of a class that is formed again must not see some of its rows moved already.
        size = max(1, size // self.num_centres) * self.num_centres
        scratch = torch.empty(
            min(size, num_rows), self.dim, dtype=self.work_dtype, device=self.device
        )
        for first in range(0, num_rows, size):
            last = min(first + size, num_rows)
            yield first, last, gradient(first, last, scratch[: last - first])

    def _end_update(self, hyper: Hyper) -> None:
        self.end_step()
        if self.lazy:
            self._log(hyper)

    def moves_in_place(self, index: Tensor | None) -> bool:
        """Whether `move_in_place` does these rows: float32, beside the kernels, none of them behind."""
        if self._traffic is not None or self.dtype != torch.float32:
            return False
        return not self._lagging(self.row_step if index is None else self.row_step[index])

    def move_in_place(
        self, index: Tensor | None, move: MoveInPlace, group: Mapping[str, Any]
    ) -> None:
        """One optimiser step on some rows by somebody who has their gradient and writes them himself.

        Args:
            index: int64 [n] local rows, sorted; None for all; `moves_in_place` was asked about them.
            move: Moves them; `age` counts the updates of each, this one included.
            group: The optimiser's parameter group as it is in this step.
        """
        hyper, where = self.rule.numbers(group), slice(None) if index is None else index
        step = self._next_step(self.row_step[where])
        move(self.weight, self.dense.states, hyper, step)
        self.row_step[where] = step
        self._end_update(hyper)

    def gradient_square(
        self, index: Tensor | None, gradient: GradientTile, norms: Tensor
    ) -> Tensor:
        """Scalar float64: squared norm of the projected gradient by some rows; nothing moves.

        Args:
            index: As in `update`.
            gradient: As in `update`.
            norms: As in `update`.
        """
        num_rows = self.num_rows if index is None else index.numel()
        squares = norms.to(self.work_dtype).square()[:, None]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for first, last, tile in self._tiles(num_rows, gradient):
            where = slice(first, last) if index is None else index[first:last]
            project(tile, self.current_rows(where).to(self.work_dtype), squares[first:last])
            total += torch.linalg.vector_norm(tile, dtype=torch.float64).square()
        return total

    def _window(self, index: Tensor | None) -> tuple[Window, Tensor]:
        """The rows to be moved, and their row steps after it: int64 [n]."""
        rounded = self._rounding(index)
        if self._traffic is None:
            row_step = self.row_step if index is None else self.row_step[index]
            catch_up = None
            if self._lagging(row_step):
                catch_up = CatchUp(self._history, row_step, self.work_dtype)
            where = slice(None) if index is None else index
            window = ResidentWindow(self.dense, where, self.work_dtype, catch_up, rounded)
            return window, self._next_step(row_step)
        assert index is not None  # stored rows go with sampled candidates
        held, self._held = self._held, None
        if held is None or not torch.equal(held.index, index):
            held = Held(index, *self._now(index))
        window = HeldWindow(self._traffic, index, held.parts, rounded)
        return window, self._next_step(held.row_step)

    def _next_step(self, row_step: Tensor) -> Tensor:
        """`row_step` of rows after this update: int64 [n]."""
        step = row_step + 1
        return step.fill_(self.num_steps + 1) if self.lazy else step

    def _rounding(self, index: Tensor | None) -> Round:
        """How moved rows enter the store."""
        if self.dtype != torch.bfloat16:
            return nearest
        rows = torch.arange(self.num_rows, device=self.device) if index is None else index
        ids = rows + self.start * self.num_centres
        return StochasticRounding(self._seed, self.num_steps, ids, self.dim)

    def _log(self, hyper: Mapping[str, float]) -> None:
        self._hyper_log.append(np.array([hyper[name] for name in self.rule.hyper], np.float64))
        self._history.append(self.rule.transition(hyper))

    def catch_up(self) -> None:
        """Bring rows and states that lazy steps left behind up to now, for those who look at all of them.

        Raises:
            TypeError: the rows are stored elsewhere than on the device.
        """
        if not self._lagging(self.dense.row_step):
            return
        window, _ = self._window(None)
        for low in range(0, self.num_rows, MOVE_ROWS):
            high = min(low + MOVE_ROWS, self.num_rows)
            window.put(low, high, window.open(low, high))
        window.close(torch.full_like(self.row_step, self.num_steps))
        self.version += 1

    def move(self, index: Tensor, rows: Tensor) -> None:
        """One step of rows that follow something else than a gradient: they become `rows` [n, D]."""
        self.weight[index] = self._rounding(index)(0, 0, index.numel(), rows)
        self.row_step[index] += 1

    def end_step(self) -> None:
        """Count a step whose rows `update` or `move` has moved."""
        self.num_steps += 1
        self.version += 1

    def set_rows(self, index: Tensor, rows: Tensor, *, row_step: int = 0) -> None:
        """Overwrite local rows [n, D]; their optimiser state starts afresh, at `row_step` where frozen.

        AdamW of lazy tables corrects the moments by the steps of the table, not of the row: the first step of
        rows set late in a training is up to (1 - beta1) / sqrt(1 - beta2) times the learning rate.
        """
        rows = rows.to(self.device, self.dtype)
        self.version += 1
        states = [torch.zeros_like(rows) for _ in self.rule.buffers]
        step = torch.full_like(index, self.num_steps if self.lazy else row_step)
        self._write(index, [rows, *states], step)

    def _write(self, index: Tensor, parts: Parts, row_step: Tensor) -> None:
        self._held = None
        if self._traffic is None:
            self.dense.write(index, parts, row_step)
        else:
            self._traffic.behind(index, parts, row_step)

    # -- state -----------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """What goes by row: the weight, the rule's buffers, the row's step."""
        return ["weight", *self.rule.buffers, "row_step"]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that goes by class: the live tensors, [num_local, ...], or [num_local, K, ...].

        Raises:
            TypeError: the table is mapped; it has `existing` instead.
        """
        self.settle()
        if not isinstance(self.store, DenseStore):
            raise TypeError("a mapped table has no tensors of all rows")
        live = (self.store.weight, *self.store.states, self.store.row_step)
        tensors = dict(zip(self.names, live, strict=True))
        if self.num_centres == 1:
            return tensors
        shape = (self.num_local, self.num_centres)
        return {name: tensor.view(*shape, *tensor.shape[1:]) for name, tensor in tensors.items()}

    def settle(self) -> None:
        """Wait until all rows are where they are stored."""
        self.stream.join()
        if self._traffic is not None:
            self._traffic.settle()

    def _forget(self) -> None:
        """`settle`, and drop what is at hand or being read of rows that are about to become others."""
        self.settle()
        self._held = None
        if self._traffic is not None:
            self._traffic.forget()

    def existing(self) -> dict[str, Tensor]:
        """Of a mapped table, rows that exist, in host memory: `ids` int64 [n] over all ranks, and names."""
        self.settle()
        assert isinstance(self.store, MappedStore)
        index = self.store.existing()
        parts, row_step = self.store.read_home(index)
        tensors = dict(zip(self.names, (*parts, row_step), strict=True))
        return {"ids": index + self.start * self.num_centres, **tensors}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become a table of which only the rows `ids` were ever written: as `existing` gave, of any ranks."""
        self._forget()
        first = self.start * self.num_centres
        mine = (tensors["ids"] >= first) & (tensors["ids"] < first + self.num_rows)
        self.store.clear()
        index = tensors["ids"][mine] - first
        parts = [tensors[name][mine] for name in self.names]  # the store takes them where it is
        self._write(index, parts[:-1], parts[-1])

    def overwrite(self, tensors: Mapping[str, Tensor]) -> None:
        """Take rows of all local classes by name, shaped as `tensors` has them."""
        self._forget()
        if not self.num_rows:
            return
        flat = [tensors[name].reshape(self.num_rows, -1) for name in self.names]
        for low in range(0, self.num_rows, INIT_CHUNK_ROWS):
            high = min(low + INIT_CHUNK_ROWS, self.num_rows)
            parts = [tensor[low:high] for tensor in flat]
            self.store.write(slice(low, high), parts[:-1], parts[-1][:, 0])

    def progress(self) -> dict[str, Tensor]:
        """What all ranks share: `num_steps` int64 [], `step_log` float64 [steps, k] (lazy tables)."""
        log = torch.from_numpy(self._hyper_log[:].copy())
        return {"num_steps": torch.tensor(self.num_steps), "step_log": log}

    def check_progress(self, num_steps: Tensor, step_log: Tensor) -> None:
        """Raise ValueError unless the state was saved with the same value of `untouched`.

        A row's step means another thing with the other one, and rows that lag could not be caught up.
        """
        saved_lazy = len(step_log) == int(num_steps)
        if int(num_steps) and saved_lazy != self.lazy:
            raise ValueError(
                f"head.untouched: {UNTOUCHED[self.lazy]!r}, but the state was saved after {int(num_steps)} "
                f"steps with {UNTOUCHED[saved_lazy]!r}; allowed: the same"
            )

    def set_progress(self, num_steps: Tensor, step_log: Tensor) -> None:
        """Restore what `progress` gave.

        Raises:
            ValueError: as check_progress.
        """
        self.check_progress(num_steps, step_log)
        self.version += 1
        self.num_steps, self._held = int(num_steps), None
        size, log = 1 + len(self.rule.buffers), step_log.cpu().numpy()[: None if self.lazy else 0]
        self._hyper_log = GrowingArray(len(self.rule.hyper))
        self._hyper_log.extend(log.reshape(len(log), len(self.rule.hyper)))
        names = self.rule.hyper
        matrices = [
            self.rule.transition(dict(zip(names, values, strict=True))) for values in log.tolist()
        ]
        self._history = StepHistory.of(np.reshape(matrices, (len(log), size, size)))


@dataclass(frozen=True)
class Held:
    """Stored rows at hand for one step, as of now."""

    index: Tensor
    """int64 [n] local rows, ascending."""
    parts: Parts
    """In the work dtype."""
    row_step: Tensor
    """int64 [n] as stored: before catching up."""


def is_direction(rows: Tensor) -> Tensor:
    """Bool [n, ...]: rows [n, ..., D] that are finite and not zero."""
    norm = torch.linalg.vector_norm(rows, dim=-1)
    return (norm > NORM_FLOOR) & norm.isfinite()


def check_directions(ids: Tensor, rows: Tensor) -> None:
    """Raise ValueError for a row [n, ..., D] that has no direction, naming its class."""
    unusable = ~is_direction(rows).view(len(ids), math.prod(rows.shape[1:-1])).all(1)
    if bool(unusable.any()):
        where = int(torch.nonzero(unusable)[0, 0])
        norms = torch.linalg.vector_norm(rows[where], dim=-1).reshape(-1).tolist()
        raise ValueError(
            f"rows: that of class {int(ids[where])} has norm {', '.join(map(str, norms))}; allowed: finite "
            "and not zero (a row is a direction)"
        )
