"""Updates in which a kernel moves the rows itself, against the head's own in torch: for every such kernel.

The slow twins: TileSource writes the gradient and ClassTable.update projects it and moves the rows; whole
heads run `blocked`.
"""

import copy
from dataclasses import replace

import torch
from kernel_cases import awkward, relative

import mpsoftmax as mp
from mpsoftmax.head import head as head_module
from mpsoftmax.head.class_table import ClassTable
from mpsoftmax.head.gradient import Contribution, TileSource, row_norms
from mpsoftmax.head.row_optim import RowAdamW, RowSGD
from mpsoftmax.head.targets import targets_of
from mpsoftmax.kernels.problem import NORM_FLOOR, Pairs, weigh
from mpsoftmax.kernels.row_update import OwnPulls, Rows

WHOLE = 2**40
TOLERANCE = 5e-6
SGD, ADAMW = RowSGD(lr=0.3, weight_decay=0.05), RowAdamW(lr=0.02, weight_decay=0.1)


def table_of(num_rows, dim, rule):
    """A table amid training: its states are not zero, its rows have had different numbers of updates."""

    table = ClassTable(
        num_classes=num_rows,
        dim=dim,
        local=(0, num_rows),
        dtype=torch.float32,
        device=torch.device("cpu"),
        seed=3,
        init_std=0.05,
        rule=rule,
        untouched="frozen",
    )
    stream = torch.Generator().manual_seed(8)
    for state in table.dense.states:
        state.copy_(torch.rand(state.shape, generator=stream) * 0.01)
    table.row_step[::3] = 4
    return table


def contribution(asked, index, swept):
    """What a backward call of the head would leave, with coefficients of any size."""

    stream = torch.Generator().manual_seed(5)
    own = asked.target
    if index is not None:
        own = torch.where(own >= 0, index[own.clamp_min(0)], -1)
    unit = asked.features.float()
    rows = asked.rows[asked.target.clamp_min(0)][:, None]
    by_negatives = torch.rand(asked.batch, generator=stream) / swept.total
    return Contribution(
        index=index,
        swept=swept,
        chosen=None,
        unit=unit,
        norm=torch.ones(asked.batch),
        targets=targets_of(unit, own, rows),
        negatives=by_negatives,
        target=torch.rand(asked.batch, generator=stream) - 0.5,
        swept_own=True,
    )


def compare_updates(
    kernel,
    update,
    twin,
    num_rows,
    dim,
    dtype,
    shift,
    rule,
    sampled=False,
    kept_lines=WHOLE,
    wish="nothing",
):
    """Rows and states after one step of `update.update_rows` and of the tiles that `twin` writes."""

    asked = awkward(19, num_rows, dim, dtype, shift, wish)
    ours = table_of(2 * num_rows if sampled else num_rows, dim, rule)
    theirs, before = copy.deepcopy(ours), copy.deepcopy(ours)
    index = torch.arange(1, ours.num_rows, 2) if sampled else None
    asked = replace(asked, rows=ours.current_rows(index))
    budget = kept_lines * asked.batch * dtype.itemsize
    swept = kernel.sweep(asked, want_pull=True, keep_bytes=budget)
    part = contribution(asked, index, swept)
    source = TileSource(twin, part, index)

    def gradient(start, stop, out):
        source.write(start, stop, out, add=False)
        return out

    # What was swept refers to the rows of `ours`, which must not have moved yet: theirs first.
    theirs.update(index, gradient, row_norms([part], index), rule.defaults())
    update.update_rows(
        swept,
        weigh(part.swept, part.negatives),
        OwnPulls(
            unit=part.unit,
            weight=part.target / part.targets.norm.clamp_min(NORM_FLOOR),
            owners=Pairs(asked.target),
        ),
        Rows(ours.weight, tuple(ours.dense.states), index),
        "sgd" if isinstance(rule, RowSGD) else "adamw",
        rule.numbers(rule.defaults()),
        (ours.row_step if index is None else ours.row_step[index]) + 1,
    )
    for found, expected, old in zip(
        (ours.weight, *ours.dense.states),
        (theirs.weight, *theirs.dense.states),
        (before.weight, *before.dense.states),
        strict=True,
    ):
        assert relative(found - old, expected - old) < TOLERANCE
        if sampled:
            assert torch.equal(found[::2], old[::2])
    moved = relative(theirs.weight, before.weight)
    assert moved > 1e-2
    return moved


def trained(kernel, calls, compute_dtype=torch.float32, **axes):
    """State of a head of 40 classes after three steps, and whether each moved its rows in the kernel."""

    seen, sound = [], head_module.update_in_kernel

    def watched(*arguments):
        seen.append(sound(*arguments))
        return seen[-1]

    head_module.update_in_kernel = watched
    try:
        head = mp.ModelParallelSoftmax(
            12, 40, kernel=kernel, compute_dtype=compute_dtype, seed=5, init_std=0.3, **axes
        )
        stream = torch.Generator().manual_seed(2)
        for _ in range(3):
            for _ in range(calls):
                features = torch.randn(11, 12, generator=stream).requires_grad_()
                head(features, torch.randint(0, 40, (11,), generator=stream)).backward()
            head.step()
    finally:
        head_module.update_in_kernel = sound
    return head.state_dict(), seen


def compare_heads(kernel, limit=2e-5, calls=1, taken=True, **axes):
    """Whole heads after three steps; `taken`: whether the kernel moved the rows each time."""
    ours, seen = trained(kernel, calls, **axes)
    assert seen == [taken] * 3
    theirs, seen = trained("blocked", calls, **axes)
    assert seen == [False] * 3
    assert ours.keys() == theirs.keys()
    start, _ = trained("blocked", 0, **axes)
    assert relative(start["weight"], ours["weight"]) > 1e-2  # they moved
    for name, found in ours.items():
        if found.is_floating_point() and found.numel():
            assert relative(found, theirs[name]) < limit, name
        else:
            assert torch.equal(found, theirs[name]), name
