"""Compiled code for the CPU: each function against float64 or torch, updates and heads against their twins.

The sweep itself is held to the formulas in tests/head/test_kernels.py, beside the other kernels.
"""

import math

import pytest
import torch
from kernel_cases import relative
from update_cases import ADAMW, SGD, compare_heads, trained

import mpsoftmax as mp
from mpsoftmax.head.row_optim import RowSGD, kernel_rule
from mpsoftmax.head.tile_move import project
from mpsoftmax.kernels import blocked, native, native_library, select
from mpsoftmax.kernels.problem import NORM_FLOOR

BOTH = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)
CPU = torch.device("cpu")


def needs_library():
    reason = native_library.obstacle()
    return pytest.mark.skipif(reason is not None, reason=f"the compiled kernel {reason}")


pytestmark = needs_library()


@pytest.fixture(params=[1, 3])
def threads(request):
    """Threads of torch, and of compiled code with it."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def exponentials(logits, factor=None, shift=0.0):
    """(entries, sums) of compiled code; the logits stay."""
    entries, total = logits.clone(), torch.zeros(logits.shape[1])
    native.exponentiate(entries, factor, shift, total)
    return entries, total


def test_exponential():
    """Within 1.5 units in the last place of float32 wherever the result is a normal number."""
    logits = torch.cat([torch.linspace(-87.3, 88.7, 200_001), torch.linspace(-1e-3, 1e-3, 1001)])
    exact = logits.double().exp()
    found = exponentials(logits[None])[0][0].double()
    assert ((found - exact) / exact).abs().max() < 1.5 * 2**-23


def test_exponential_at_the_edges():
    """Gradual underflow to zero, overflow to infinity, and NaN, as torch has them."""
    logits = torch.tensor(
        [0.0, -88.0, -95.0, -103.0, -150.0, -math.inf, 88.8, 1e30, math.inf, math.nan]
    )
    found, expected = exponentials(logits[None])[0][0], logits.double().exp()
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=2**-149, equal_nan=True)
    assert found[0] == 1.0
    assert 0.0 < found[3] < 1e-44
    assert found[4] == found[5] == 0.0


@BOTH
@pytest.mark.parametrize(
    ("rows", "batch"), [(1, 1), (31, 7), (33, 511), (100, 513), (65, 1200), (0, 5)]
)
def test_exponentiate(threads, dtype, rows, batch):
    """Any shape and number of threads: E or F in place, rounded once; sums of E that were not rounded."""
    stream = torch.Generator().manual_seed(rows * batch)
    logits = (torch.randn(rows, batch, generator=stream) * 8).to(dtype)
    factor = torch.rand(rows, generator=stream) + 0.5
    for by in (None, factor):
        wide = (1.0 if by is None else by[:, None]) * logits.float()
        exact = (wide.double() - 3.0).exp()
        entries, total = exponentials(logits, by, 3.0)
        torch.testing.assert_close(total.double(), exact.sum(0), rtol=4e-6, atol=0.0)
        expected = exact if by is None else exact * by[:, None]
        unit = {torch.float32: 4e-6, torch.bfloat16: 2**-8}[dtype]
        torch.testing.assert_close(entries.double(), expected, rtol=unit, atol=0.0)


def test_long_sums():
    """A block of equal rows: one after the other the sums would be off by 1e-5, always to the same side."""
    logits = torch.full((2048, 3), -4.3)
    exact = 2048 * logits[0].double().exp()
    one_by_one = torch.zeros(3)
    for row in logits.exp():
        one_by_one += row
    assert (one_by_one / exact - 1).abs().min() > 2e-6
    assert (exponentials(logits)[1] / exact - 1).abs().max() < 1e-6


@BOTH
@pytest.mark.parametrize(
    "row_dtype", [torch.float32, torch.bfloat16], ids=["of float32", "of bfloat16"]
)
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (5, 15), (40, 16), (33, 300)])
def test_prepare(threads, dtype, row_dtype, rows, dim):
    """Factors of norms, and rows times them, rounded to nearest as torch does it; NaN and zero rows."""
    table = torch.randn(rows, dim, generator=torch.Generator().manual_seed(dim)).to(row_dtype)
    table[-1] = 0.0
    table[0, 0] = math.nan
    factor, alone, out = torch.empty(rows), torch.empty(rows), torch.empty(rows, dim, dtype=dtype)
    native.prepare(table, out, factor, 20.0)
    native.prepare(table, None, alone, 20.0)
    assert torch.equal(factor.nan_to_num(), alone.nan_to_num())
    exact = 20.0 / table.double().norm(dim=1).clamp_min(NORM_FLOOR)
    torch.testing.assert_close(factor.double(), exact, rtol=3e-7, atol=0.0, equal_nan=True)
    expected = (table.float() * factor[:, None]).to(dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize(
    "rule", [SGD, ADAMW, RowSGD(0.3, 0.0)], ids=["sgd", "adamw", "no momentum"]
)
@pytest.mark.parametrize(("num_rows", "dim"), [(1, 1), (70, 24), (257, 150), (40, 33)])
def test_move_rows(threads, rule, num_rows, dim):
    """Against the projection and the rules in torch, at float64; without momentum the state rests."""
    stream = torch.Generator().manual_seed(dim)
    gradient, rows, *states = (
        torch.rand(num_rows, dim, generator=stream) - low for low in (0.5, 0.5, 0.0, 0.0)
    )
    states, age = states[: len(rule.buffers)], torch.arange(num_rows) % 5 + 1
    rows[-1] = 0.0  # no direction: nothing is projected
    hyper = rule.numbers(rule.defaults())
    exact = [part.double() for part in (rows, *states)]
    wide, squares = gradient.double(), rows.double().square().sum(1, keepdim=True)
    project(wide, exact[0], squares.clamp_min(NORM_FLOOR**2))
    before = rows.clone()
    rule.update(exact[0], exact[1:], wide, hyper, age)
    native.move_rows(rows, states, gradient, kernel_rule(rule), hyper, age)
    for found, expected in zip((rows, *states), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert relative(rows, before) > 1e-3


@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    "axes",
    [
        {"objective": "arcface"},
        {"objective": "sphereface", "candidates": mp.Uniform(0.5)},
        {"objective": "npcface", "candidates": mp.DSoftmaxK(0.4, batch_labels="included")},
        {"objective": "dsoftmax", "candidates": mp.DSoftmaxB(0.5)},
        {"objective": "arcface", "e_budget_bytes": 0},
        {"weights": mp.SubCentres(2), "e_budget_bytes": 0},
        {"calls": 2},
        {"candidates": mp.Uniform(0.5), "storage": "host"},
        {"candidates": mp.Uniform(0.5), "untouched": "lazy"},
    ],
    ids=[
        "all",
        "maximum",
        "hard negatives",
        "B",
        "nothing kept",
        "sub-centres",
        "two calls",
        "host",
        "lazy",
    ],
)
def test_heads(rule, axes):
    """Rows, states and running statistics after three steps, against `blocked`."""
    compare_heads("native", taken=False, optimizer=rule, **axes)


def train(kernel, compute_dtype, row_dtype, candidates):
    """On each rank: loss, features' gradient and rows after three steps on uneven shards and batches."""
    head = mp.ModelParallelSoftmax(
        12, 29, objective=mp.ArcFace(16.0, 0.3), candidates=candidates, kernel=kernel, seed=5, init_std=0.3,
        compute_dtype=compute_dtype, row_dtype=row_dtype, optimizer=mp.RowSGD(lr=0.3), batch_capacity=9,
    )  # fmt: skip
    stream = torch.Generator().manual_seed(head.comm.rank)
    losses, gradients = [], []
    for step in range(3):
        size = (9, 4, 0, 7)[(head.comm.rank + step) % 4]
        features = torch.randn(size, 12, generator=stream).requires_grad_()
        loss = head(features, torch.randint(-1, 29, (size,), generator=stream))
        loss.backward()
        head.step()
        losses.append(loss.detach().double())
        gradients.append(features.grad.double())
    rows = head.class_rows(torch.arange(29)).double()
    return torch.stack(losses), torch.cat(gradients), rows


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_on_ranks(ranks, world):
    """Whole trainings in float32 and bfloat16 against `reference` in float64."""
    for candidates in ("all", mp.Uniform(0.5)):
        exact = ranks.run(train, world, kernel="reference", compute_dtype=torch.float64,
                          row_dtype=torch.float64, candidates=candidates)  # fmt: skip
        for dtype, limit in ((torch.float32, 2e-5), (torch.bfloat16, 3e-2)):
            found = ranks.run(train, world, kernel="native", compute_dtype=dtype,
                              row_dtype=torch.float32, candidates=candidates)  # fmt: skip
            for ours, theirs in zip(found, exact, strict=True):
                for value, expected in zip(ours, theirs, strict=True):
                    error = (value - expected).norm() / expected.norm().clamp_min(1e-12)
                    assert error < limit, (dtype, candidates)


def test_bfloat16_is_no_farther_from_the_truth_than_blocked():
    """Rounded once where `blocked` rounds several times."""
    errors = {}
    for row_dtype in (torch.float32, torch.bfloat16):
        exact = train("reference", torch.float64, row_dtype, "all")
        for kernel in ("native", "blocked"):
            found = train(kernel, torch.bfloat16, row_dtype, "all")
            errors[kernel] = [
                float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)
            ]
        for ours, theirs in zip(errors["native"], errors["blocked"], strict=True):
            assert ours < 1.2 * theirs


def test_the_number_of_threads_changes_sums_only(monkeypatch):
    """Rows and features come out the same to rounding, on any number of threads."""
    before, states = torch.get_num_threads(), []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        states.append(trained("native", 1, optimizer=SGD)[0]["weight"])
    torch.set_num_threads(before)
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=1e-5, atol=1e-6)


@pytest.fixture
def fresh_library():
    """The library is looked for anew, in the test and after it."""
    native_library.library.cache_clear()
    yield
    native_library.library.cache_clear()


def test_not_built(monkeypatch, tmp_path, fresh_library):
    """By name an error that says what to do; `auto` takes `blocked`."""
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path / "native.lib.so")
    with pytest.raises(
        ValueError, match=r"kernel: 'native' was not built: .*install mpsoftmax again"
    ):
        select.select("native")
    assert select.select("auto") is blocked


def test_built_from_another_source(monkeypatch, tmp_path, fresh_library):
    source = tmp_path / "native.cpp"
    source.write_bytes(native_library.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(native_library, "SOURCE", source)
    with pytest.raises(ValueError, match=r"kernel: 'native' was built from another native.cpp"):
        select.select("native")
    monkeypatch.setattr(native_library, "SOURCE", tmp_path / "not shipped.cpp")
    native_library.library.cache_clear()
    assert select.select("native") is native


def test_cannot_be_loaded(monkeypatch, tmp_path, fresh_library):
    broken = tmp_path / "native.lib.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native_library, "LIBRARY", broken)
    with pytest.raises(ValueError, match=r"kernel: 'native' .*native\.lib\.so"):
        select.select("native")


def test_rows_elsewhere_are_not_for_it():
    with pytest.raises(
        ValueError, match="kernel: 'native' is for rows on a CPU, and these are on 'cuda:0'"
    ):
        select.select("native", torch.device("cuda", 0))
    assert select.select("auto", torch.device("cuda", 0)) is blocked
    assert select.select("auto", CPU) is native
