"""Compiled code for the CPU: each function against float64 or torch, updates and heads against their twins.

The sweep itself is held to the formulas in tests/head/test_kernels.py, beside the other kernels.
"""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from kernel_cases import awkward, relative
from update_cases import ADAMW, SGD, compare_heads, trained

import mpsoftmax as mp
from mpsoftmax.head.row_optim import RowSGD, kernel_rule
from mpsoftmax.head.tile_move import project
from mpsoftmax.kernels import native, native_library
from mpsoftmax.kernels.problem import NORM_FLOOR

BOTH = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)

REASON = native_library.obstacle()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the compiled kernel {REASON}")


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
    unit = 2.0 ** (exact.log2().floor() - 23)
    assert ((exponentials(logits[None])[0][0].double() - exact) / unit).abs().max() < 1.5


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


@pytest.fixture
def called(monkeypatch):
    """How often each function of compiled code was called."""
    counts = Counter()

    def counted(name):
        sound = getattr(native, name)

        def function(*arguments):
            counts[name] += 1
            return sound(*arguments)

        return function

    for name in ("prepare", "exponentiate", "move_rows"):
        monkeypatch.setattr(native, name, counted(name))
    return counts


PLAIN = {"prepare", "exponentiate", "move_rows"}
HEADS = {
    "all": ({"objective": "arcface"}, PLAIN),
    "maximum": ({"objective": "sphereface", "candidates": mp.Uniform(0.5)}, {"move_rows"}),
    "hard negatives": (
        {"objective": "npcface", "candidates": mp.DSoftmaxK(0.4, batch_labels="included")},
        {"move_rows"},
    ),
    "own rows apart": ({"candidates": mp.DSoftmaxK(0.4)}, PLAIN),
    "B": ({"objective": "dsoftmax", "candidates": mp.DSoftmaxB(0.5)}, PLAIN),
    "nothing kept": ({"objective": "arcface", "e_budget_bytes": 0}, PLAIN),
    "sub-centres": ({"weights": mp.SubCentres(2), "e_budget_bytes": 0}, {"move_rows"}),
    "two calls": ({"calls": 2}, PLAIN),
    "host": ({"candidates": mp.Uniform(0.5), "storage": "host"}, PLAIN),
    "lazy": ({"candidates": mp.Uniform(0.5), "untouched": "lazy"}, PLAIN),
    "cast": ({"compute_dtype": torch.bfloat16, "limit": 3e-2}, PLAIN),
}


@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", HEADS)
def test_heads(called, rule, name):
    """Rows, states and running statistics after three steps against `blocked`, and what did the work."""
    axes, functions = HEADS[name]
    compare_heads("native", taken=False, optimizer=rule, **axes)
    assert called.keys() == functions


def train(kernel, compute_dtype, row_dtype, candidates):
    """On each rank: loss, features' gradient and rows after three steps on uneven shards and batches."""
    assert kernel != "native" or native_library.obstacle() is None
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


@pytest.fixture
def states_by_threads():
    """Rows after three steps on 1, 2 and 5 threads."""
    before, states = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            states.append(trained("native", 1, optimizer=SGD)[0]["weight"])
    finally:
        torch.set_num_threads(before)
    return states


def test_the_number_of_threads_changes_sums_only(states_by_threads):
    for other in states_by_threads[1:]:
        torch.testing.assert_close(other, states_by_threads[0], rtol=1e-5, atol=1e-6)


def test_rows_need_not_be_contiguous():
    """Columns of a wider tensor, as a caller of the kernel may have them."""
    wide = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    asked = awkward(9, 300, 20, torch.float32, 3.0)
    answers = [
        native.sweep(replace(asked, rows=rows), want_pull=True, keep_bytes=2**30)
        for rows in (wide[:, ::2], wide[:, ::2].contiguous())
    ]
    assert not wide[:, ::2].is_contiguous()
    assert torch.equal(answers[0].total, answers[1].total)
    assert torch.equal(answers[0].pull, answers[1].pull)


@pytest.mark.parametrize("norm", [1e20, 1e-20])
def test_rows_whose_square_is_out_of_range(norm):
    """A row has a direction up to float32's largest numbers; below the floor of norms it is none."""
    rows = torch.ones(2, 16) * (norm / 4)
    factor, out = torch.empty(2), torch.empty(2, 16)
    native.prepare(rows, out, factor, 8.0)
    expected = 8.0 / max(norm, NORM_FLOOR)
    torch.testing.assert_close(factor, torch.full((2,), expected), rtol=1e-6, atol=0.0)
    states, before = [torch.zeros(2, 16)], rows.clone()
    hyper = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    native.move_rows(rows, states, torch.ones(2, 16), "sgd", hyper, torch.ones(2).long())
    assert rows.isfinite().all()
    assert torch.equal(rows, before) == (norm > 1)  # all of the gradient lies along the row


@pytest.mark.parametrize(
    "call",
    [
        lambda: native.prepare(torch.ones(4, 3), None, torch.ones(2), 1.0),
        lambda: native.prepare(torch.ones(4, 3), torch.ones(3, 4).T, torch.ones(4), 1.0),
        lambda: native.exponentiate(torch.ones(4, 3), torch.ones(4).double(), 0.0, torch.ones(3)),
        lambda: native.exponentiate(torch.ones(4, 3), None, 0.0, torch.ones(3).double()),
        lambda: native.move_rows(
            torch.ones(4, 3).double(), [torch.ones(4, 3)], torch.ones(4, 3), "sgd",
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}, torch.ones(4).long(),
        ),
    ],
    ids=["too few factors", "strided", "float64 factors", "float64 sums", "float64 rows"],
)  # fmt: skip
def test_what_it_cannot_read_is_refused(call):
    with pytest.raises(ValueError, match=r"tensor: .*; allowed here: torch\.(float32|bfloat16) \["):
        call()


def test_beside_a_compiled_backbone():
    """torch.compile leaves the head alone, without a word: warnings are errors here."""
    head = mp.ModelParallelSoftmax(12, 40, seed=5)
    net = torch.nn.Linear(6, 12)

    def loss(images, labels):
        return head(net(images), labels)

    images, labels = torch.randn(9, 6), torch.arange(9)
    expected = loss(images, labels)
    compiled = torch.compile(loss, backend="eager")(images, labels)
    compiled.backward()
    assert torch.equal(compiled, expected)
    assert net.weight.grad.any()
