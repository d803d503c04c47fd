"""Row optimisers against torch's own, and rows left out of sampled steps against rows that are not."""

import math

import numpy as np
import pytest
import torch
import truth

from mpsoftmax import RowAdamW, RowSGD
from mpsoftmax.head.class_table import ClassTable
from mpsoftmax.head.history import StepHistory
from mpsoftmax.kernels.problem import NORM_FLOOR

CLASSES, DIM = 300, 7  # two groups of rows moved at once, the second short
TIGHT = {torch.float64: 1e-12, torch.float32: 2e-5}


def table(rule, untouched="frozen", dtype=torch.float64, classes=CLASSES):
    return ClassTable(
        num_classes=classes,
        dim=DIM,
        local=(0, classes),
        dtype=dtype,
        device=torch.device("cpu"),
        seed=0,
        init_std=0.5,
        rule=rule,
        untouched=untouched,
    )


def tiles_of(gradient):
    """The class table's view of a gradient [n, D]: written tile by tile."""
    return lambda start, stop, out: out.copy_(gradient[start:stop])


def move(table, index, gradient, hyper):
    """One step of the class table with the gradient [n, D] of rows `index`."""
    norms = table.current_rows(index).norm(dim=1)
    table.update(index, tiles_of(gradient), norms, hyper)


def tangent(gradient, rows):
    """The part of a gradient that turns the rows, the only part that a loss of unit rows has."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    along = (gradient.double() * unit).sum(1, keepdim=True)
    return gradient.double() - along * unit


def learning_rate(step, steps):
    """Warm-up, cosine, and a jump."""
    warm = min(1.0, (step + 1) / 10)
    return 0.4 * warm * (0.55 + 0.45 * math.cos(math.pi * step / steps)) * (1 + (step % 37 == 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (RowSGD(), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4)),
        (RowSGD(0.1, 0.0, 0.0), lambda p: torch.optim.SGD(p, 0.1)),
        (RowSGD(0.1, 0.5, 0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.5, weight_decay=0.1)),
        (RowAdamW(), torch.optim.AdamW),
        (
            RowAdamW(0.1, (0.5, 0.8), 1e-4, 0.1),
            lambda p: torch.optim.AdamW(p, 0.1, betas=(0.5, 0.8), eps=1e-4, weight_decay=0.1),
        ),
    ],
)
def test_equals_torch(rule, make, dtype):
    """20 steps of a loss of unit rows, the learning rate changing, every row touched."""
    ours = table(rule, dtype=dtype)
    start = ours.weight.clone()
    parameter = torch.nn.Parameter(start.clone())
    theirs = make([parameter])
    stream = torch.Generator().manual_seed(0)
    for step in range(20):
        pull = torch.randn(CLASSES, DIM, generator=stream, dtype=torch.float64).to(dtype)
        by_row = pull / ours.weight.norm(dim=1, keepdim=True)
        lr = rule.lr * (1 + step % 3)
        move(ours, None, by_row, {**rule.defaults(), "lr": lr})
        theirs.param_groups[0]["lr"] = lr
        theirs.zero_grad()
        (torch.nn.functional.normalize(parameter, dim=1) * pull).sum().backward()
        theirs.step()
        moved, expected = ours.weight - start, parameter.detach() - start
        assert (moved - expected).norm() < TIGHT[dtype] * expected.norm()
    assert ours.num_steps == 20
    assert (ours.row_step == 20).all()


def touched_at(step, classes):
    """One to three rows, most of them rarely; the upper half never, row 0 often."""
    stream = np.random.default_rng(step)
    drawn = (stream.random(stream.integers(1, 4)) ** 3 * classes / 2).astype(np.int64)
    return torch.from_numpy(np.unique(drawn))


@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance"),
    [
        pytest.param(torch.float64, 10_000, 1e-11, marks=pytest.mark.slow),
        (torch.float64, 1_500, 1e-11),
        (torch.float32, 1_500, 3e-5),
    ],
    ids=["float64-long", "float64", "float32"],
)
def test_lazy_sgd_equals_dense_sgd(dtype, steps, tolerance):
    """Rows and momenta, some of them never touched, are as if every step had moved all.

    Compared with a dense float64 run that is given the same gradients.
    """
    classes = 60
    decay = 0.5 / steps  # shrinks the rows to about a third
    rule = RowSGD(0.1, 0.9, decay)
    ours = table(rule, "lazy", dtype, classes)
    rows, momenta = ours.weight.double().numpy().copy(), np.zeros((classes, DIM))
    start = rows.copy()
    stream = torch.Generator().manual_seed(0)
    for step in range(steps):
        index = torch.arange(classes) if step == steps - 1 else touched_at(step, classes)
        gradient = torch.randn(index.numel(), DIM, generator=stream, dtype=torch.float64) * 1e-3
        lr = learning_rate(step, steps)
        norms = torch.from_numpy(np.linalg.norm(rows[index.numpy()], axis=1))
        ours.update(index, tiles_of(gradient), norms, {**rule.defaults(), "lr": lr})
        dense = np.zeros((classes, DIM))
        dense[index.numpy()] = tangent(gradient, torch.from_numpy(rows)[index]).numpy()
        momenta = 0.9 * momenta + dense + decay * rows
        rows = rows - lr * momenta
    assert 0.1 < np.linalg.norm(rows) / np.linalg.norm(start) < 0.5
    for mine, exact in ((ours.weight, rows), (ours.dense.states[0], momenta)):
        assert np.linalg.norm(mine.double().numpy() - exact) < tolerance * np.linalg.norm(exact)


def test_rows_as_of_now_without_an_update():
    """Lagging rows are read caught up, and reading changes nothing."""
    rule = RowSGD(0.3, 0.8, 0.05)
    ours = table(rule, "lazy")
    first = ours.weight.clone()
    for _ in range(50):
        move(ours, torch.tensor([3]), torch.zeros(1, DIM), rule.defaults())
    stale, expected, momentum = ours.weight.clone(), first.clone(), torch.zeros_like(first)
    for _ in range(50):
        momentum = 0.8 * momentum + 0.05 * expected
        expected = expected - 0.3 * momentum
    assert torch.equal(stale[4], first[4])
    for index in (None, torch.tensor([0, 3, 299])):
        rows = ours.current_rows(index)
        assert torch.allclose(rows, expected if index is None else expected[index], rtol=1e-12)
    assert torch.equal(ours.weight, stale)


@pytest.mark.parametrize("untouched", ["frozen", "lazy"])
def test_adamw_rows_left_out(untouched):
    """As documented: frozen keeps all and counts own updates; lazy decays, but skips the updates."""
    p = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.03}
    rule = RowAdamW(lr=0.02, **p)
    ours = table(rule, untouched, classes=40)
    expected = ours.weight.clone()
    dense = truth.Dense("adamw", expected, untouched, 0.02, **p)
    stream = torch.Generator().manual_seed(0)
    for step in range(200):
        index = touched_at(step, 40)
        current = ours.current_rows(index)
        pull = tangent(torch.randn(index.numel(), DIM, generator=stream), current)
        gradient = torch.zeros(40, DIM, dtype=torch.float64).index_copy(0, index, pull)
        touched = torch.zeros(40, dtype=torch.bool).index_fill(0, index, True)
        move(ours, index, pull, rule.defaults())
        dense.step(expected, gradient, touched)
    rows = ours.current_rows(None)
    assert torch.allclose(rows, expected, rtol=1e-11, atol=1e-13)
    assert torch.equal(rows[20:], table(rule, classes=40).weight[20:]) == (untouched == "frozen")


@pytest.mark.parametrize("rule", [RowSGD(), RowAdamW()], ids=["sgd", "adamw"])
def test_frozen_rows_do_not_change_by_a_bit(rule):
    ours = table(rule, dtype=torch.float32)
    everything = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    move(ours, None, everything, rule.defaults())
    before = {name: tensor.clone() for name, tensor in ours.tensors().items()}
    index = torch.tensor([0, 17, 255, 256, 299])
    for _ in range(3):
        move(ours, index, torch.ones(5, DIM), rule.defaults())
    rest = torch.ones(CLASSES, dtype=torch.bool).index_fill(0, index, False)
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor[rest], before[name][rest]), name
        assert not torch.equal(tensor[index], before[name][index]), name
    assert (ours.row_step[index] == 4).all()
    assert (ours.row_step[rest] == 1).all()


def test_all_rows_at_once_equals_an_index_of_all_rows():
    """The path that moves the table in place and the one that gathers agree to the bit."""
    rule, stream = RowSGD(), torch.Generator().manual_seed(0)
    in_place, gathered = table(rule, dtype=torch.float32), table(rule, dtype=torch.float32)
    for _ in range(5):
        gradient = torch.randn(CLASSES, DIM, generator=stream)
        move(in_place, None, gradient, rule.defaults())
        move(gathered, torch.arange(CLASSES), gradient, rule.defaults())
    for name, tensor in in_place.tensors().items():
        assert torch.equal(tensor, gathered.tensors()[name]), name


def test_a_zero_row_stays_finite():
    ours = table(RowSGD(), dtype=torch.float32)
    ours.weight[5] = 0
    norms = ours.weight.norm(dim=1).clamp_min(NORM_FLOOR)  # as the kernels take them
    ours.update(None, tiles_of(torch.ones(CLASSES, DIM)), norms, RowSGD().defaults())
    assert ours.weight.isfinite().all()


def test_history_multiplies_any_stretch():
    stream = np.random.default_rng(0)
    matrices = stream.normal(size=(200, 2, 2)) * 0.7
    history = StepHistory(2)
    for num, matrix in enumerate(matrices, start=1):
        history.append(matrix)
        if num not in (1, 2, 3, 64, 65, 127, 200):
            continue
        start = stream.permutation(num + 1)
        for a, product in zip(start, history.since(start), strict=True):
            expected = np.eye(2)
            for factor in matrices[a:num]:
                expected = factor @ expected
            assert np.allclose(product, expected, rtol=1e-10, atol=1e-300)
    assert len(history) == 200


@pytest.mark.parametrize("num", [0, 1, 2, 7, 64, 100])
def test_a_restored_history_goes_on_as_the_one_that_grew(num):
    matrices = np.random.default_rng(1).normal(size=(num + 9, 2, 2)) * 0.7
    restored, grown = StepHistory.of(matrices[:num]), StepHistory(2)
    for matrix in matrices[:num]:
        grown.append(matrix)
    for place in range(num, num + 9):
        start = np.arange(place + 1)
        assert np.array_equal(restored.since(start), grown.since(start))
        restored.append(matrices[place])
        grown.append(matrices[place])
