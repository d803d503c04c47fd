"""Rows and optimiser rows in bfloat16: exact sums, and rounding that loses nothing in expectation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mpsoftmax as mp
from mpsoftmax.head.rounding import StochasticRounding

DIM, CLASSES = 16, 301
HALF = torch.bfloat16


def spacing(values):
    """Distance of neighbouring bfloat16 numbers at `values`."""
    exponent = torch.frexp(values.double())[1] - 1
    return torch.ldexp(torch.ones_like(values, dtype=torch.float64), exponent - 7)


def test_rounding_keeps_the_expectation():
    wide = torch.randn(40, DIM, generator=torch.Generator().manual_seed(0))
    ids, sums = torch.arange(100, 140), torch.zeros(40, DIM, dtype=torch.float64)
    num = 4000
    for step in range(num):
        rounded = StochasticRounding(3, step, ids, DIM)(step % 2, 0, 40, wide).double()
        error = rounded - wide.double()
        assert (error.abs() < spacing(wide)).all()
        sums += error
    deviations = sums / num / (0.5 * spacing(wide) / num**0.5)
    assert deviations.abs().max() < 5
    assert deviations.square().mean() < 1.2  # a fair coin's variance is at most that of one half


def test_rounding_draws_are_independent():
    """Of neighbouring columns, of rows, of steps, of weight and state."""
    wide = torch.full((500, 64), 1.0 + 2.0**-8)  # half way: up or down by a fair coin
    draws = [
        StochasticRounding(0, step, torch.arange(500), 64)(part, 0, 500, wide).double() > 1
        for step in (0, 1)
        for part in (0, 1)
    ]
    flat = np.stack([draw.double().numpy() for draw in draws]).reshape(4, 500, 64) - 0.5
    assert np.abs(flat.mean(axis=(1, 2))).max() < 5 * 0.5 / np.sqrt(500 * 64)
    noise = 5 * 0.25 / np.sqrt(500 * 63)
    assert abs((flat[0, :, 1:] * flat[0, :, :-1]).mean()) < noise
    assert abs((flat[0, 1:] * flat[0, :-1]).mean()) < noise
    for k in range(1, 4):
        assert abs((flat[0] * flat[k]).mean()) < noise
    columns = np.corrcoef(flat[0].T) - np.eye(64)
    assert np.abs(columns).max() < 6 / np.sqrt(500)


@given(low=st.integers(0, 30), num=st.integers(1, 10), seed=st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_rounding_depends_on_the_row_only(low, num, seed):
    """Not on which rows are rounded together, nor where they lie."""
    wide = torch.randn(40, DIM, generator=torch.Generator().manual_seed(1))
    whole = StochasticRounding(seed, 5, torch.arange(40) + 10**9, DIM)(1, 0, 40, wide)
    part = StochasticRounding(seed, 5, torch.arange(low, low + num) + 10**9, DIM)
    assert torch.equal(part(1, 0, num, wide[low : low + num]), whole[low : low + num])


def test_rounding_keeps_every_nan():
    """NVIDIA's own is all ones but for the sign: adding to it would wrap around to -0."""
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1, 0x7F800001], dtype=torch.int32)
    wide = bits.view(torch.float32).repeat(50, DIM // 4)
    assert StochasticRounding(1, 2, torch.arange(50), DIM)(0, 0, 50, wide).isnan().all()


def test_rounding_of_special_numbers():
    wide = torch.tensor([[torch.inf, -torch.inf, 0.0, -0.0, 1.0, -2.0, 2.0**-130, torch.nan]])
    rounded = StochasticRounding(0, 0, torch.arange(1), 8)(0, 0, 1, wide)
    assert torch.equal(rounded[:, :6].float(), wide[:, :6])
    assert rounded[0, 7].isnan()


def head(dtype, **more):
    return mp.ModelParallelSoftmax(
        DIM, CLASSES, row_dtype=dtype, init_std=0.3, batch_capacity=8, **more
    )


def step(one, number=0, scale=1.0):
    """Loss, feature gradient; the rows move."""
    rank, world = one.comm.rank, one.comm.world
    stream = torch.Generator().manual_seed(number)
    features = torch.randn(8, DIM, generator=stream)
    labels = torch.randint(0, CLASSES, (8,), generator=stream)
    mine = slice(8 * rank // world, 8 * (rank + 1) // world)
    leaf = features[mine].requires_grad_()
    loss = one(leaf, labels[mine])
    (loss * scale).backward()
    one.step()
    return loss.item(), leaf.grad


AXES = {
    "all": {},
    "frozen": {"candidates": mp.Uniform(0.3)},
    "lazy": {"candidates": mp.Uniform(0.3), "untouched": "lazy"},
    "mapped": {"candidates": mp.Uniform(0.3), "untouched": "lazy", "storage": "mapped"},
    "adamw": {"candidates": mp.Uniform(0.3), "optimizer": mp.RowAdamW(lr=0.1)},
    "reference": {"kernel": "reference"},
    "recomputed": {"e_budget_bytes": 0},
    "npcface": {"objective": "npcface"},
    "sub_centres": {"weights": mp.SubCentres(2)},
}


def two_heads(name):
    """bfloat16 rows beside float32 rows of the same values."""
    ours, theirs = head(HALF, **AXES[name]), head(torch.float32, **AXES[name])
    everyone = torch.arange(CLASSES)
    theirs.load_rows(everyone, ours.class_rows(everyone).float())
    steps = [step(one) for one in (ours, theirs)]
    return *steps, *(one.class_rows(everyone).double() for one in (ours, theirs))


@pytest.mark.parametrize("name", list(AXES))
def test_a_step_is_that_of_wide_rows_rounded(ranks, name):
    """Same loss, same feature gradient; rows and momentum within one rounding."""
    for world in (1, 3):
        for (loss, gradient), (wide_loss, wide_gradient), rows, wide in ranks.run(
            two_heads, world, name=name
        ):
            assert loss == pytest.approx(wide_loss, rel=1e-6)
            if wide_gradient.numel():
                assert (gradient - wide_gradient).norm() < 1e-5 * wide_gradient.norm()
            error = (rows - wide).abs()
            assert (error <= spacing(wide) * 1.0001).all()
            assert 0 < error.mean() < 0.6 * spacing(wide).mean()


def trained(steps, **axes):
    one = head(HALF, **axes)
    for number in range(steps):
        step(one, number)
    return one.class_rows(torch.arange(CLASSES))


@pytest.mark.parametrize("name", ["all", "lazy", "mapped"])
def test_resuming_and_repeating(name):
    """Draws are keyed, not streamed: a head that goes on from a state takes the same steps."""
    axes = AXES[name]
    whole = trained(4, **axes)
    assert torch.equal(whole, trained(4, **axes))
    first, second = head(HALF, **axes), head(HALF, **axes)
    for number in range(2):
        step(first, number)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for number in range(2, 4):
        step(second, number)
    assert torch.equal(whole, second.class_rows(torch.arange(CLASSES)))


def test_small_steps_are_not_lost():
    """A thousand steps, each far below half a spacing: rounding to nearest would not move at all."""
    plain = {"optimizer": mp.RowSGD(lr=3e-4, momentum=0.0, weight_decay=0.5)}
    one = head(HALF, **plain)
    everyone = torch.arange(CLASSES)
    before = one.class_rows(everyone).double()
    features, labels = torch.randn(8, DIM), torch.zeros(8, dtype=torch.int64)
    for _ in range(1000):
        (one(features.clone().requires_grad_(), labels) * 0.0).backward()  # decay alone
        one.step()
    shrunk = one.class_rows(everyone).double().norm() / before.norm()
    assert shrunk.item() == pytest.approx((1 - 3e-4 * 0.5) ** 1000, rel=3e-3)
    assert ((1 - 3e-4 * 0.5) * before[:3].to(HALF).double()).to(HALF).double().equal(before[:3])


def test_bfloat16_products_on_bfloat16_rows(ranks):
    """Rows enter the products as they are: as good as casting them from float32."""
    everyone = torch.arange(CLASSES)
    exact = mp.ModelParallelSoftmax(
        DIM, CLASSES, row_dtype=torch.float64, compute_dtype=torch.float64, init_std=0.3
    )
    errors = []
    for dtype in (HALF, torch.float32):
        one = head(dtype, compute_dtype=HALF)
        exact.load_rows(everyone, one.class_rows(everyone).double())
        features = torch.randn(8, DIM, generator=torch.Generator().manual_seed(1))
        leaf, wide = features.clone().requires_grad_(), features.double().requires_grad_()
        labels = torch.arange(8)
        one(leaf, labels).backward()
        exact(wide, labels).backward()
        exact.zero_grad()
        errors.append(float((leaf.grad - wide.grad).norm() / wide.grad.norm()))
    assert errors[0] < 2.5 * errors[1] + 1e-3
    assert errors[0] < 0.05
