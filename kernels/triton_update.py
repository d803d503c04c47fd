"""The class gradient with the rows' update in its epilogue: the gradient never reaches memory.

    tile of rows    g = sum_i F_ic weighted_i          the product over the batch, D whole, in registers
                    g += pull of the samples' own      added in the order of the sorted samples: no atomics
                    g -= <g, w> w / |w|^2              the tangent space
                    row and optimiser state move       in place: SGD with momentum, or AdamW

The rows' gradient is what mpsoftmax.head.gradient.TileSource writes and mpsoftmax.head.class_table projects;
the rules are those of mpsoftmax.head.row_optim; tests/kernels/test_update.py holds this file to all three.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpsoftmax.kernels.blocked import used_as_they_are
from mpsoftmax.kernels.problem import Pairs, Swept
from mpsoftmax.kernels.row_update import OwnPulls, Rows, Rule, bias_corrections, numbers_of
from mpsoftmax.kernels.triton_launch import (
    MAX_UPDATE_DIM,
    UpdateLaunch,
    rows_in_block,
    update_launch,
    way_of,
)
from mpsoftmax.kernels.triton_sweep import entries_of, run
from mpsoftmax.kernels.triton_update_kernel import update_kernel


def can_update(swept: Swept) -> bool:
    """Whether `update_rows` does this: rows that Triton sweeps, D at most MAX_UPDATE_DIM."""
    return way_of(swept.problem) != "blocked" and swept.problem.rows.shape[1] <= MAX_UPDATE_DIM


def update_rows(
    swept: Swept,
    weighted: Tensor,
    own: OwnPulls,
    rows: Rows,
    rule: Rule,
    hyper: Mapping[str, float],
    age: Tensor,
) -> None:
    """Move all swept rows in place by one step of the rule along the loss's gradient.

    Args:
        swept: What `sweep` returned; the rows have not moved since.
        weighted: [B, D] compute dtype, from `mpsoftmax.kernels.problem.weigh`.
        own: The other part of the gradient.
        rows: What moves.
        rule: "sgd" takes lr, momentum and weight_decay from `hyper`; "adamw" lr, beta1, beta2, eps and
            weight_decay: the arithmetic of mpsoftmax.head.row_optim.
        hyper: The rule's numbers.
        age: int64 [R]: updates of each row, this one included; read by AdamW.
    """
    assert can_update(swept)
    problem = swept.problem
    num_rows, dim = problem.rows.shape
    launch = update_launch(dim, weighted.dtype)
    num_kept = 0 if swept.kept is None else swept.kept.shape[0]
    size = rows_in_block(problem)
    starts = [*range(0, num_kept, num_kept or 1), *range(num_kept, num_rows, size)]
    if swept.maximum is not None:  # kept are logits: E of a block at a time
        starts = [*range(0, num_kept, size), *range(num_kept, num_rows, size)]
    for start, stop in zip(starts, [*starts[1:], num_rows], strict=True):
        block = {
            "entries": entries_of(swept, start, stop),
            "factor": swept.factor[start:stop],
            "index": None if rows.index is None else rows.index[start:stop],
            "num_rows": stop - start,
            "first_row": start,
            **bounds_of(own.owners, start, stop, launch),
            **arguments_of(rule, hyper, rows, start, stop, age),
        }
        run(
            update_kernel,
            (-(-(stop - start) // launch.classes),),
            **block,
            weighted=weighted,
            unit=own.unit,
            pull=own.weight,
            batch=problem.batch,
            dim=dim,
            scale=problem.scale,
            TIMES_FACTOR=not used_as_they_are(problem),
            BLOCK_C=launch.classes,
            BLOCK_B=launch.depth,
            CHUNK=launch.chunk,
            CHUNKS=-(-dim // launch.chunk),
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )


def bounds_of(owners: Pairs, start: int, stop: int, launch: UpdateLaunch) -> dict[str, Any]:
    """The samples whose own rows lie in each tile of rows start..stop-1."""
    edges = torch.arange(start, stop + launch.classes, launch.classes, device=owners.classes.device)
    return {
        "owner_rows": owners.classes,
        "owner_samples": owners.samples,
        "bounds": torch.searchsorted(owners.classes, edges.clamp_(max=stop)),
    }


def arguments_of(
    rule: Rule, hyper: Mapping[str, float], rows: Rows, start: int, stop: int, age: Tensor
) -> dict[str, Any]:
    """What moves and by which numbers; the whole table where an index says which row is meant."""
    where = slice(start, stop) if rows.index is None else slice(None)
    weight, *states = (part[where] for part in (rows.weight, *rows.states))
    shared = {"weight": weight, **numbers_of(rule, hyper)}
    if rule == "sgd":
        return shared | {
            "first_state": states[0] if hyper["momentum"] else None,
            "second_state": None,
            "correction1": None,
            "correction2": None,
        }
    first, second = bias_corrections(hyper, age[start:stop])
    return shared | {
        "first_state": states[0],
        "second_state": states[1],
        "correction1": first,
        "correction2": second,
    }
