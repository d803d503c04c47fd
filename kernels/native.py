"""The sweep and the rows' update on a CPU, with one pass over memory between matrix products.

The blocks, the products and what is kept are those of `blocked`; what `blocked` does to a block in five to
eight passes of PyTorch is one call of compiled code (native.cpp):

    prepare         rows -> scale / |w|, and the rows times it in the compute dtype where they must be cast
    exponentiate    logits -> E or F in place, and the sums of each sample
    move_rows       gradient -> projected on the tangent space, row and optimiser state moved

Arithmetic is float32 throughout and rounded once on the way out. The entries of a problem that is not plain
or needs a running maximum are those of `blocked`, as are those of float64 features.
"""

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mpsoftmax.kernels import blocked
from mpsoftmax.kernels.blocked import (
    cast_scratch,
    empty_answer,
    multiply_entries,
    rows_in_block,
    sweep_blocks,
)
from mpsoftmax.kernels.native_library import Move, library
from mpsoftmax.kernels.problem import OnSums, Problem, Swept, ignored
from mpsoftmax.kernels.row_update import Rule, bias_corrections, numbers_of

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def suits(problem: Problem) -> bool:
    """Whether compiled code does this problem: plain, a static shift, float32 and bfloat16 on the CPU."""
    if not problem.is_plain or problem.shift is None or not problem.features.is_cpu:
        return False
    return problem.features.dtype in NAMES and problem.rows.dtype in NAMES


def sweep(
    problem: Problem,
    *,
    want_pull: bool,
    keep_bytes: int,
    spare: Tensor | None = None,
    on_sums: OnSums = ignored,
) -> Swept:
    """See mpsoftmax.kernels.blocked.sweep."""
    answer = empty_answer(problem, want_pull, keep_bytes, rows_in_block(problem), spare)
    return sweep_blocks(block_of if suits(problem) else blocked.block_of, answer, on_sums)


def block_of(
    answer: Swept, start: int, stop: int, entries: Tensor, scratch: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See mpsoftmax.kernels.blocked.FillBlock."""
    factor = answer.factor[start:stop]
    rows = write_entries(answer.problem, start, stop, entries, factor, answer.total, scratch)
    return entries, rows


def write_entries(
    problem: Problem,
    start: int,
    stop: int,
    entries: Tensor,
    factor: Tensor,
    total: Tensor,
    scratch: Tensor | None,
) -> Tensor:
    """E (F where rows are used as they are) of rows start..stop-1 into `entries`; their sums onto `total`.

    Returns:
        The rows as they entered the product, [n, D] compute dtype.
    """
    rows = problem.rows[start:stop].contiguous()
    prepared = rows if scratch is None else scratch[: stop - start]
    if scratch is not None:
        prepare(rows, prepared, factor, problem.scale)
    torch.mm(prepared, problem.features.T, out=entries)
    if scratch is None:
        prepare(rows, None, factor, problem.scale)  # after the product: the rows are in cache now
    problem.own.fill(entries, start, -torch.inf)
    exponentiate(entries, factor if scratch is None else None, problem.shift or 0.0, total)
    return prepared


def prepare(rows: Tensor, out: Tensor | None, factor: Tensor, scale: float) -> None:
    """Scale / |w| of rows [n, D] into `factor` [n]; the rows times it into `out` [n, D]."""
    wanted = rows.dtype if out is None else out.dtype
    getattr(library(), f"prepare_{NAMES[rows.dtype]}_{NAMES[wanted]}")(
        address(rows, rows.dtype, rows.shape),
        None if out is None else address(out, wanted, rows.shape),
        address(factor, torch.float32, rows.shape[:1]),
        *rows.shape,
        scale,
        torch.get_num_threads(),
    )


def exponentiate(entries: Tensor, factor: Tensor | None, shift: float, total: Tensor) -> None:
    """Logits [n, B] -> exp(logit - shift) in place, their sums onto `total` [B] float32.

    Args:
        entries: Logits; with a factor, what it must multiply to make them.
        factor: float32 [n] of each row; the result is multiplied by it again. None: 1, and it is not.
        shift: Subtracted from every logit.
        total: Added to.
    """
    threads = torch.get_num_threads()
    sums = total.new_zeros(threads, entries.shape[1])
    kind = "exponentiate" if factor is None else "exponentiate_times_factor"
    getattr(library(), f"{kind}_{NAMES[entries.dtype]}")(
        address(entries, entries.dtype, entries.shape),
        None if factor is None else address(factor, torch.float32, entries.shape[:1]),
        *entries.shape,
        shift,
        address(sums, torch.float32, (threads, entries.shape[1])),
        threads,
    )
    total += sums.sum(0)


def address(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Where a tensor's numbers lie.

    Raises:
        ValueError: they are of another dtype or shape, or not contiguous on the CPU.
    """
    fits = tensor.dtype == dtype and tensor.shape == tuple(shape)
    if not (fits and tensor.is_cpu and tensor.is_contiguous()):
        raise ValueError(
            f"tensor: {tensor.dtype} {list(tensor.shape)} on {tensor.device}, strides {tensor.stride()}; "
            f"allowed here: {dtype} {list(shape)}, contiguous, on the CPU"
        )
    return tensor.data_ptr()


def class_gradient(swept: Swept, weighted: Tensor, start: int, stop: int, out: Tensor) -> Tensor:
    """See mpsoftmax.kernels.blocked.class_gradient."""
    return multiply_entries(entries_of, swept, weighted, start, stop, out)


def entries_of(swept: Swept, start: int, stop: int) -> Tensor:
    """E (F where rows are used as they are) of rows start..stop-1, all kept or all recomputed: [n, B]."""
    problem = swept.problem
    if not suits(problem):
        return blocked.entries_of(swept, start, stop)
    if swept.kept is not None and stop <= swept.kept.shape[0]:
        return swept.kept[start:stop]
    entries = problem.features.new_empty(stop - start, problem.batch)
    factor, total = torch.empty_like(swept.factor[start:stop]), torch.empty_like(swept.total)
    scratch = cast_scratch(problem, stop - start)
    write_entries(problem, start, stop, entries, factor, total, scratch)
    return entries


nearest = blocked.nearest


def move_rows(
    rows: Tensor,
    states: Sequence[Tensor],
    gradient: Tensor,
    rule: Rule,
    hyper: Mapping[str, float],
    age: Tensor,
) -> None:
    """Move rows [n, D] and their states in place by one step of a rule along the gradient's turning part.

    The arithmetic is that of mpsoftmax.head.tile_move.project and mpsoftmax.head.row_optim.

    Args:
        rows: float32, contiguous, as are the others.
        states: (momentum,), or AdamW's (first, second) moments. SGD without momentum leaves it as it is.
        gradient: Of the loss by the rows at constant norm.
        rule: "sgd" takes lr, momentum and weight_decay from `hyper`; "adamw" lr, beta1, beta2, eps and
            weight_decay.
        hyper: The rule's numbers.
        age: int64 [n]: updates of each row, this one included; read by AdamW.
    """
    numbers = numbers_of(rule, hyper)
    first, second = two(states if rule == "adamw" or numbers["beta1"] else (), rows.shape)
    corrections = bias_corrections(hyper, age) if rule == "adamw" else ()
    correction1, correction2 = two(corrections, rows.shape[:1])
    move = Move(
        gradient=address(gradient, torch.float32, rows.shape),
        rows=address(rows, torch.float32, rows.shape),
        first=first,
        second=second,
        correction1=correction1,
        correction2=correction2,
        num_rows=rows.shape[0],
        dim=rows.shape[1],
        num_threads=torch.get_num_threads(),
        **numbers,
    )
    library().move_rows(ctypes.byref(move))


def two(tensors: Sequence[Tensor], shape: Sequence[int]) -> list[int | None]:
    """Addresses of at most two float32 tensors of that shape, and None for those that are not there."""
    found = [address(tensor, torch.float32, shape) for tensor in tensors]
    return [*found, *[None] * (2 - len(found))]
