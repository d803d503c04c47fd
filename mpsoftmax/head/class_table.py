"""The class table: the rows of this rank, their optimiser state, and how both change.

Rows are initialised by class id, so the table is the same at every world size and no two shards start
alike. A class has one row, or K that follow each other (sub-centres). Only touched rows move in a step; the
others stay `frozen`, or are caught up `lazy` when they are next needed, exactly as if every step had updated
them with a zero gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.head.history import StepHistory
from mpsoftmax.head.row_optim import RowRule
from mpsoftmax.kernels.blocked import block_size
from mpsoftmax.kernels.problem import NORM_FLOOR

UNTOUCHED = ("frozen", "lazy")
INIT_CHUNK_ROWS = 16_384
MOVE_ROWS = 256  # rows moved at once: gradient, row and momentum stay in cache over all passes

GradientTile = Callable[[int, int, Tensor], Tensor]
"""(start, stop, out [n, D]) -> gradient of the loss by those rows at constant norm, in `out`."""


def local_range(num_classes: int, world: int, rank: int) -> tuple[int, int]:
    """(first, one past last) class of a rank by the torch.chunk rule, hence DTensor's Shard(0)."""
    size = -(-num_classes // world)
    return min(num_classes, rank * size), min(num_classes, (rank + 1) * size)


def initial_rows(start: int, stop: int, dim: int, seed: int, std: float) -> np.ndarray:
    """Normal rows of classes start..stop-1, each a function of (seed, class id): float32 [n, dim].

    Philox counters are addressed by class id; Box-Muller (two 32-bit uniforms to two normals, in float64)
    because it consumes a fixed number of bits per row, unlike the ziggurat.
    """
    num_pairs = -(-dim // 2)
    blocks_per_row = -(-num_pairs // 4)  # one Philox block: four 64-bit words, four pairs
    bits = np.random.Philox(
        key=np.random.SeedSequence([seed, 0x524F5753]).generate_state(2, np.uint64)
    )
    bits.advance(start * blocks_per_row)
    per_row = blocks_per_row * 4
    words = bits.random_raw((stop - start) * per_row).reshape(stop - start, per_row)[:, :num_pairs]
    uniform = (words >> np.uint64(32)).astype(np.float64) + 0.5
    radius = np.sqrt(-2.0 * np.log(uniform * 2.0**-32)) * std
    turn = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    rows = np.empty((stop - start, 2 * num_pairs), dtype=np.float32)
    rows[:, 0::2] = radius * np.cos(turn)
    rows[:, 1::2] = radius * np.sin(turn)
    return rows[:, :dim]


class ClassTable:
    """Weight and optimiser rows of classes [start, stop), on one device.

    Args:
        num_classes: Classes over all ranks.
        dim: Embedding dimension D.
        local: (start, stop) class ids of this rank.
        dtype: Row dtype, float32 or float64.
        device: Where the rows live.
        seed: Key of the initial rows.
        init_std: Their standard deviation.
        rule: The row-wise optimiser.
        untouched: "frozen" or "lazy".
        num_centres: K, rows of a class.

    Attributes:
        weight: [num_rows, D] rows as of the step in `row_step`; those of a class follow each other.
        states: The rule's buffers, each [num_rows, D].
        row_step: int64 [num_rows]. Frozen: updates this row has had. Lazy: the step it is current to.
        num_steps: Steps taken so far.
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
    ) -> None:
        self.num_classes, self.dim, self.num_centres = num_classes, dim, num_centres
        self.start, self.stop = local
        self.rule, self.lazy = rule, untouched == "lazy"
        self.weight = torch.empty(self.num_rows, dim, dtype=dtype, device=device)
        offset = self.start * num_centres
        for first in range(0, self.num_rows, INIT_CHUNK_ROWS):
            last = min(first + INIT_CHUNK_ROWS, self.num_rows)
            rows = initial_rows(offset + first, offset + last, dim, seed, init_std)
            self.weight[first:last] = torch.from_numpy(rows)
        self.states = [torch.zeros_like(self.weight) for _ in rule.buffers]
        self.row_step = torch.zeros(self.num_rows, dtype=torch.int64, device=device)
        self.num_steps = 0
        self.version = 0  # counts what moved rows: a forward's record is of one version
        self._hyper_log: list[list[float]] = []
        self._history = StepHistory(1 + len(rule.buffers))

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

    def current_rows(self, index: Tensor | None) -> Tensor:
        """Rows as of now: [n, D]. All of them as a view where none lags behind, else a copy.

        Args:
            index: int64 [n] local rows, or None for all.
        """
        if index is None and not self._lagging(self.row_step):
            return self.weight
        if index is not None and not self._lagging(self.row_step[index]):
            return self.weight[index]
        rows, _ = self._gather(index)
        return rows

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
        in_place = index is None and not self._lagging(self.row_step)
        step, squares = self._next_step(index), norms.to(self.weight).square()[:, None]
        size = block_size(self.dim, self.weight.dtype, self.weight.device)
        scratch = self.weight.new_empty(min(size, num_rows), self.dim)
        for first in range(0, num_rows, size):
            last = min(first + size, num_rows)
            tile = gradient(first, last, scratch[: last - first])
            for low in range(first, last, MOVE_ROWS):
                high = min(low + MOVE_ROWS, last)
                where = slice(low, high) if index is None else index[low:high]
                part = tile[low - first : high - first]
                rows, states = self._open(where, in_place=in_place)
                project(part, rows, squares[low:high])
                self.rule.update(rows, states, part, hyper, step[low:high])
                if not in_place:
                    self._store(where, rows, states)
        self.row_step[slice(None) if index is None else index] = step
        self.end_step()
        if self.lazy:
            self._log(hyper)

    def _next_step(self, index: Tensor | None) -> Tensor:
        """`row_step` of the rows after this update: int64 [n]."""
        step = (self.row_step if index is None else self.row_step[index]) + 1
        return step.fill_(self.num_steps + 1) if self.lazy else step

    def _open(self, where: slice | Tensor, *, in_place: bool) -> tuple[Tensor, list[Tensor]]:
        """Rows and states to be moved: views where nothing lags, else copies, caught up."""
        if in_place:
            return self.weight[where], [state[where] for state in self.states]
        return self._gather(where)

    def _store(self, where: slice | Tensor, rows: Tensor, states: list[Tensor]) -> None:
        self.weight[where] = rows
        for state, moved in zip(self.states, states, strict=True):
            state[where] = moved

    def _lagging(self, row_step: Tensor) -> bool:
        return self.lazy and bool((row_step < self.num_steps).any())

    def _gather(self, where: slice | Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Copies of rows and states, caught up to now where the table is lazy."""
        if where is None:
            where = slice(None)
        parts = [part[where] for part in (self.weight, *self.states)]
        row_step = self.row_step[where]
        if self._lagging(row_step):
            parts = self._catch_up(parts, row_step)
        elif isinstance(where, slice):
            parts = [part.clone() for part in parts]
        return parts[0], parts[1:]

    def _catch_up(self, parts: list[Tensor], row_step: Tensor) -> list[Tensor]:
        """(row, *states) after the steps each row missed, all with zero gradient."""
        starts, inverse = np.unique(row_step.cpu().numpy(), return_inverse=True)
        products = self._history.since(starts)
        out = []
        for i in range(len(parts)):
            moved = torch.zeros_like(parts[i])
            for j, part in enumerate(parts):
                if np.any(products[:, i, j]):
                    factor = torch.from_numpy(products[inverse, i, j]).to(part)
                    moved.addcmul_(part, factor[:, None])
            out.append(moved)
        return out

    def _log(self, hyper: Mapping[str, float]) -> None:
        self._hyper_log.append([float(hyper[name]) for name in self.rule.hyper])
        self._history.append(self.rule.transition(hyper))

    def move(self, index: Tensor, rows: Tensor) -> None:
        """One step of rows that follow something else than a gradient: they become `rows` [n, D]."""
        self.weight[index] = rows
        self.row_step[index] += 1

    def end_step(self) -> None:
        """Count a step whose rows `move` has moved."""
        self.num_steps += 1
        self.version += 1

    def set_rows(self, index: Tensor, rows: Tensor, *, row_step: int = 0) -> None:
        """Overwrite local rows [n, D]; their optimiser state starts afresh, at `row_step` where frozen."""
        rows = rows.to(self.weight)
        self.version += 1
        self.weight[index] = rows
        for state in self.states:
            state[index] = 0
        self.row_step[index] = self.num_steps if self.lazy else row_step

    def tensors(self) -> dict[str, Tensor]:
        """Everything that goes by class: the live tensors, [num_local, ...], or [num_local, K, ...]."""
        named = dict(zip(self.rule.buffers, self.states, strict=True))
        tensors = {"weight": self.weight, **named, "row_step": self.row_step}
        if self.num_centres == 1:
            return tensors
        shape = (self.num_local, self.num_centres)
        return {name: tensor.view(*shape, *tensor.shape[1:]) for name, tensor in tensors.items()}

    def progress(self) -> dict[str, Tensor]:
        """What all ranks share: `num_steps` int64 [], `step_log` float64 [steps, k] (lazy tables)."""
        shape = (len(self._hyper_log), len(self.rule.hyper))
        log = torch.tensor(self._hyper_log, dtype=torch.float64).reshape(shape)
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
        self.num_steps = int(num_steps)
        self._hyper_log, self._history = [], StepHistory(1 + len(self.rule.buffers))
        for values in step_log.tolist() if self.lazy else []:
            self._log(dict(zip(self.rule.hyper, values, strict=True)))


def is_direction(rows: Tensor) -> Tensor:
    """Bool [n, ...]: rows [n, ..., D] that are finite and not zero."""
    norm = torch.linalg.vector_norm(rows, dim=-1)
    return (norm > NORM_FLOOR) & norm.isfinite()


def check_directions(ids: Tensor, rows: Tensor) -> None:
    """Raise ValueError for a row [n, ..., D] that has no direction, naming its class."""
    unusable = ~is_direction(rows).view(len(ids), -1).all(1)
    if bool(unusable.any()):
        where = int(torch.nonzero(unusable)[0, 0])
        norms = torch.linalg.vector_norm(rows[where], dim=-1).reshape(-1).tolist()
        raise ValueError(
            f"rows: that of class {int(ids[where])} has norm {', '.join(map(str, norms))}; allowed: finite "
            "and not zero (a row is a direction)"
        )


def project(gradient: Tensor, rows: Tensor, squares: Tensor) -> None:
    """In place: gradient - <gradient, w> w / |w|^2, row by row; [n, D], [n, D], |w|^2 [n, 1]."""
    along = torch.linalg.vecdot(gradient, rows)[:, None].div_(squares)
    gradient.addcmul_(rows, along, value=-1.0)
