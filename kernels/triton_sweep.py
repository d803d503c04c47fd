"""The sweep by Triton kernels, in blocks of classes: the ways `fused` and `plain` of triton_launch.way_of.

    once a block    prepare_kernel   rows' factors; rows cast to the compute dtype where they must be
    plain           torch.mm         products into the place where the block is kept
                    entries_kernel   E or F in place, and sums
    fused           logits_kernel    all three at once
    then            torch.mm         the features' gradient

With a running maximum the first pass leaves cosine logits and their largest, and a second makes E. What is
kept, and what `class_gradient` recomputes, is as in mpsoftmax.kernels.blocked, which also does what no kernel
here does (way_of says what; a warning is logged once).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from mpsoftmax.kernels import blocked
from mpsoftmax.kernels.blocked import (
    accumulate_pull,
    cast_scratch,
    empty_answer,
    raise_maximum,
)
from mpsoftmax.kernels.problem import (
    NORM_FLOOR,
    Counts,
    OnSums,
    Problem,
    Selection,
    Swept,
    finite,
    ignored,
)
from mpsoftmax.kernels.triton_entries import (
    entries_kernel,
    logits_kernel,
    prepare_kernel,
)
from mpsoftmax.kernels.triton_launch import (
    Way,
    entries_launch,
    logits_launch,
    prepare_launch,
    rows_in_block,
    way_of,
)

Found = Literal["maximum", "sums", "nothing"]

logger = logging.getLogger(__name__)


def sweep(
    problem: Problem,
    *,
    want_pull: bool,
    keep_bytes: int,
    spare: Tensor | None = None,
    on_sums: OnSums = ignored,
    way: Way | None = None,
) -> Swept:
    """Sum over the candidate rows, block by block (see mpsoftmax.kernels.problem).

    Args:
        problem: The batch and the rows.
        want_pull: Whether the features' gradient is needed; False also keeps nothing.
        keep_bytes: Bytes that may be kept for `class_gradient`; the rest is recomputed.
        spare: As in mpsoftmax.kernels.blocked.sweep.
        on_sums: As there.
        way: None takes that of way_of; tests and benchmarks name one.
    """
    way = way or way_of(problem)
    if way == "blocked":
        if problem.num_rows and problem.batch:
            say_blocked_once(problem.num_centres, problem.features.dtype, problem.rows.dtype)
        return blocked.sweep(
            problem, want_pull=want_pull, keep_bytes=keep_bytes, spare=spare, on_sums=on_sums
        )
    features, size = problem.features, min(rows_in_block(problem), problem.num_rows)
    answer = empty_answer(problem, want_pull, keep_bytes, size, spare)
    kept, maximum, factor = answer.kept, answer.maximum, answer.factor
    num_kept = 0 if kept is None else kept.shape[0]
    passes = Passes(problem, way)
    scratch = features.new_empty(size, problem.batch) if num_kept < problem.num_rows else None
    apart = features.new_empty(size, problem.batch) if maximum is not None else None
    scratch_rows = cast_scratch(problem, size)
    for start in range(0, problem.num_rows, size):
        stop = min(start + size, problem.num_rows)
        if kept is not None and stop <= num_kept:
            entries = kept[start:stop]
        else:
            assert scratch is not None
            entries = scratch[: stop - start]
        rows = prepare(problem, start, stop, factor[start:stop], scratch_rows)
        if maximum is not None:
            assert apart is not None
            largest = passes.products(rows, factor, start, entries, None, "maximum")
            raise_maximum(largest[:, 0], answer, maximum)
            logits, entries = entries, apart[: stop - start]
            sums = passes.from_logits(logits, factor, start, entries, maximum, "sums")
        else:
            sums = passes.products(rows, factor, start, entries, None, "sums")
        add_sums(sums, answer.total, answer.counts)
        if stop == problem.num_rows:
            on_sums(answer)
        if answer.pull is not None:
            accumulate_pull(answer.pull, entries, rows)
    return answer


@cache
def say_blocked_once(num_centres: int, compute: torch.dtype, rows: torch.dtype) -> None:
    """Log that a problem takes the slower way, once for each kind of it."""
    logger.warning(
        "kernel: triton has no way for %d row(s) a class, %s compute and %s rows; blocked takes them "
        "(one row a class, float32 or bfloat16 compute and float32 rows are swept by triton)",
        num_centres,
        compute,
        rows,
    )


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **arguments: Any) -> None:
    """Launch a kernel; `arguments` hold its options too, which its signature does not name."""
    kernel[grid](*args, **arguments)


def prepare(
    problem: Problem, start: int, stop: int, factor: Tensor, scratch: Tensor | None
) -> Tensor:
    """Factors of rows start..stop-1 into `factor` [n]; the rows as they enter the products.

    `scratch` [>= n, D] compute dtype takes the rows where they must be cast.
    """
    rows = problem.rows[start:stop].contiguous()
    cast = None if scratch is None else scratch[: stop - start]
    launch = prepare_launch(rows.shape[1])
    grid = (-(-rows.shape[0] // launch.classes),)
    run(
        prepare_kernel,
        grid,
        rows,
        factor,
        cast,
        *rows.shape,
        problem.scale,
        NORM_FLOOR,
        BLOCK_C=launch.classes,
        BLOCK_D=launch.depth,
        num_warps=launch.num_warps,
    )
    return rows if cast is None else cast


def add_sums(sums: Tensor, total: Tensor, counts: Counts) -> None:
    """Add the tiles' sums [tiles, k, B] to total and counts, in place."""
    wanted = [total, *(part for part in vars(counts).values() if part is not None)]
    for part, found in zip(wanted, sums.sum(0), strict=True):
        part += found


@dataclass
class Passes:
    """The kernels over one block, for one problem, and what they read that is the same for all blocks.

    `found` names what a pass is after: "maximum" writes cosine logits and finds the largest of the negatives'
    [tiles, 1, B]; "sums" writes E or F and sums them [tiles, k, B]; "nothing" writes E or F.
    """

    problem: Problem
    way: Way

    def __post_init__(self) -> None:
        """Bring the vectors of length B to the form the kernels read."""
        problem, hard, selection = self.problem, self.problem.hard, self.problem.selection
        limit = None if selection is None else selection.limit
        unit = problem.cosine_unit.float().expand(problem.batch).contiguous()
        self._features = problem.features.contiguous()
        self._num_sums = 1 + 2 * (hard is not None) + 2 * (selection is not None)
        self._scaled = blocked.used_as_they_are(problem)
        self._wishes: dict[str, Any] = {
            "batch": problem.batch,
            "shift": problem.shift or 0.0,
            "own": problem.target,
            "absent": problem.absent,
            "unit": None if hard is None and limit is None else unit,
            "threshold": None if hard is None else hard.threshold.float().contiguous(),
            **dict(zip(("v0", "v1", "v2"), hard.value if hard else (0.0, 1.0, 0.0), strict=True)),
            **dict(zip(("d0", "d1"), hard.slope if hard else (1.0, 0.0), strict=True)),
            "easy": hard.easy if hard else 1.0,
            "class_members": None if selection is None else selection.class_members,
            "sample_members": None if selection is None else selection.sample_members,
            "limit": None if limit is None else limit.float().contiguous(),
        }

    def products(
        self,
        rows: Tensor,
        factor: Tensor,
        start: int,
        out: Tensor,
        maximum: Tensor | None,
        found: Found,
    ) -> Tensor:
        """From prepared rows [n, D], the block's first being `start`, into `out` [n, B].

        `factor` is that of all rows [R]; `maximum` [B] replaces the static shift.
        """
        if self.way == "plain":
            torch.mm(rows, self._features.T, out=out)
            return self._pass_over(out, factor, start, out, maximum, found, as_they_are=False)
        num, batch = out.shape
        launch = logits_launch(batch, out.dtype, plain=self.problem.is_plain)
        tiles = -(-num // launch.classes)
        sums = self._room(tiles, found)
        run(
            logits_kernel,
            (tiles * -(-batch // launch.samples),),
            rows,
            self._features,
            rows.shape[1],
            **self._of_block(factor, start, out, maximum, sums, found),
            BLOCK_C=launch.classes,
            BLOCK_B=launch.samples,
            BLOCK_D=launch.depth,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
        return sums

    def from_logits(
        self,
        logits: Tensor,
        factor: Tensor,
        start: int,
        out: Tensor,
        maximum: Tensor,
        found: Found,
    ) -> Tensor:
        """From cosine logits [n, B] of "maximum" into `out` [n, B], which is another tensor."""
        return self._pass_over(logits, factor, start, out, maximum, found, as_they_are=True)

    def _pass_over(
        self,
        source: Tensor,
        factor: Tensor,
        start: int,
        out: Tensor,
        maximum: Tensor | None,
        found: Found,
        *,
        as_they_are: bool,
    ) -> Tensor:
        num, batch = out.shape
        launch = entries_launch(batch, plain=self.problem.is_plain)
        tiles = -(-num // (launch.classes * launch.depth))
        sums = self._room(tiles, found)
        run(
            entries_kernel,
            (-(-batch // launch.samples), tiles),
            source,
            **self._of_block(factor, start, out, maximum, sums, found),
            LOGITS_AS_THEY_ARE=as_they_are,
            BLOCK_C=launch.classes,
            BLOCK_B=launch.samples,
            TILES=launch.depth,
            num_warps=launch.num_warps,
        )
        return sums

    def _room(self, tiles: int, found: Found) -> Tensor:
        lines = {"maximum": 1, "sums": self._num_sums, "nothing": 0}[found]
        return torch.empty(
            tiles, lines, self.problem.batch, dtype=torch.float32, device=self._features.device
        )

    def _of_block(
        self,
        factor: Tensor,
        start: int,
        out: Tensor,
        maximum: Tensor | None,
        sums: Tensor,
        found: Found,
    ) -> dict[str, Any]:
        """The arguments the two kernels share."""
        selection = self.problem.selection
        num = out.shape[0]
        return {
            **self._wishes,
            "out": out,
            "factor": factor[start : start + num] if self._scaled else None,
            "maximum": None if maximum is None else finite(maximum),
            "sums": None if found == "nothing" else sums,
            "num_rows": num,
            "first_class": start,
            "marked": marked_pairs(selection, start, out),
            "MARKED_ARE_KEPT": selection is not None and selection.kept is not None,
            "FIND_MAXIMUM": found == "maximum",
            "NUM_SUMS": sums.shape[1],
        }


def marked_pairs(selection: Selection | None, start: int, like: Tensor) -> Tensor | None:
    """int8 [n, B]: 1 where a block's pairs are kept, or else dropped; None where no pairs are given."""
    pairs = None if selection is None else selection.kept or selection.dropped
    if pairs is None:
        return None
    marked = torch.zeros(like.shape, dtype=torch.int8, device=like.device)
    pairs.fill(marked, start, 1)
    return marked


def entries_of(swept: Swept, start: int, stop: int) -> Tensor:
    """F (E times slope where rows are cast) of rows start..stop-1, all kept or all recomputed: [n, B]."""
    problem, kept = swept.problem, swept.kept
    if kept is not None and stop > kept.shape[0]:
        kept = None
    if kept is not None and swept.maximum is None:
        return kept[start:stop]
    out = problem.features.new_empty(stop - start, problem.batch)
    passes = Passes(problem, way_of(problem))
    if kept is not None:
        assert swept.maximum is not None
        passes.from_logits(kept[start:stop], swept.factor, start, out, swept.maximum, "nothing")
        return out
    factor = torch.empty_like(swept.factor[start:stop])
    rows = prepare(problem, start, stop, factor, cast_scratch(problem, stop - start))
    passes.products(rows, swept.factor, start, out, swept.maximum, "nothing")
    return out


def class_gradient(swept: Swept, weighted: Tensor, start: int, stop: int, out: Tensor) -> Tensor:
    """Write sum_i F_ic weighted_i of rows start..stop-1 into `out` (see mpsoftmax.kernels.blocked)."""
    if way_of(swept.problem) == "blocked":
        return blocked.class_gradient(swept, weighted, start, stop, out)
    return blocked.multiply_entries(entries_of, swept, weighted, start, stop, out)


def nearest(problem: Problem, groups: Sequence[tuple[int, int]], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest classes of other baskets: as mpsoftmax.kernels.blocked does it."""
    return blocked.nearest(problem, groups, k)
