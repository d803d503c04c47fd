"""The class gradient fused with the rows' update, in Triton's interpreter, against the head's own in torch.

The slow twin: TileSource writes the gradient, ClassTable.update projects it and moves the rows.
"""

import copy

import pytest
import torch
from kernel_cases import awkward, relative, triton_set_to

from mpsoftmax.head.row_optim import RowAdamW, RowSGD
from mpsoftmax.kernels.row_update import OwnPulls, Rows

WHOLE = 2**40
TOLERANCE = 5e-6
SGD, ADAMW = RowSGD(lr=0.3, weight_decay=0.05), RowAdamW(lr=0.02, weight_decay=0.1)


def table_of(num_rows, dim, rule):
    """A table amid training: its states are not zero, its rows have had different numbers of updates."""
    from mpsoftmax.head.class_table import ClassTable

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
    from mpsoftmax.head.gradient import Contribution
    from mpsoftmax.head.targets import targets_of

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


class WideProducts:
    """The class gradient as a float32 product: the kernel does not round it, a bfloat16 product does."""

    @staticmethod
    def class_gradient(swept, weighted, start, stop, out):
        from mpsoftmax.kernels import blocked, triton_sweep

        def entries_of(swept, first, last):
            return triton_sweep.entries_of(swept, first, last).float()

        blocked.multiply_entries(entries_of, swept, weighted.float(), start, stop, out)
        return out


def compare(**case):
    """Runs in the interpreter's process, with blocks of 64 rows; see compare_this."""
    with triton_set_to(block=64):
        return compare_this(**case)


def compare_this(
    num_rows, dim, dtype, shift, rule, sampled=False, kept_lines=WHOLE, wish="nothing"
):
    """Rows and states after one step of each."""
    from dataclasses import replace

    from mpsoftmax.head.gradient import TileSource, row_norms
    from mpsoftmax.kernels import triton_sweep, triton_update
    from mpsoftmax.kernels.problem import NORM_FLOOR, Pairs, weigh

    asked = awkward(19, num_rows, dim, dtype, shift, wish)
    ours = table_of(2 * num_rows if sampled else num_rows, dim, rule)
    theirs, before = copy.deepcopy(ours), copy.deepcopy(ours)
    index = torch.arange(1, ours.num_rows, 2) if sampled else None
    asked = replace(asked, rows=ours.current_rows(index))
    budget = kept_lines * asked.batch * dtype.itemsize
    swept = triton_sweep.sweep(asked, want_pull=True, keep_bytes=budget)
    part = contribution(asked, index, swept)
    source = TileSource(WideProducts, part, index)

    def gradient(start, stop, out):
        source.write(start, stop, out, add=False)
        return out

    # What was swept refers to the rows of `ours`, which must not have moved yet: theirs first.
    theirs.update(index, gradient, row_norms([part], index), rule.defaults())
    triton_update.update_rows(
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(("num_rows", "dim"), [(150, 24), (70, 150), (33, 300)])
def test_update(interpreter, dtype, rule, num_rows, dim):
    """One, two and three chunks of D; neither rows, D nor samples fill their tiles."""
    interpreter.run(compare, num_rows=num_rows, dim=dim, dtype=dtype, shift=3.0, rule=rule)


@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("shift", [3.0, None], ids=["constant", "maximum"])
@pytest.mark.parametrize("kept_lines", [0, 64, WHOLE], ids=["nothing", "a block", "all"])
def test_sampled_rows_and_budget(interpreter, rule, shift, kept_lines):
    """Every second row of a table, E kept, recomputed or both, of a problem with every wish."""
    interpreter.run(
        compare,
        num_rows=150,
        dim=12,
        dtype=torch.float32,
        shift=shift,
        rule=rule,
        sampled=True,
        kept_lines=kept_lines,
        wish="all",
    )


def test_without_momentum_the_state_rests(interpreter):
    """As torch's SGD: no momentum, and the buffer stays what it is."""
    rule = RowSGD(lr=0.3, momentum=0.0)
    interpreter.run(compare, num_rows=70, dim=24, dtype=torch.bfloat16, shift=3.0, rule=rule)
