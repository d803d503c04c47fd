"""The kernels against the formulas of mpsoftmax.kernels.problem, written out in float64."""

import pytest
import torch

import mpsoftmax as mp
from mpsoftmax.kernels import blocked, native, native_library, reference, select
from mpsoftmax.kernels.blocked import block_size
from mpsoftmax.kernels.problem import Problem, weigh

KERNELS = {"blocked": blocked, "reference": reference}
if native_library.obstacle() is None:  # else tests/kernels/test_native.py skips, saying why
    KERNELS["native"] = native
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IDS = ["float64", "float32", "bfloat16"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 6e-2}
DIM = 24
WHOLE = 2**40


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """256 rows a block, the least there is: 2,500 rows are ten blocks."""
    monkeypatch.setattr(blocked, "CPU_BLOCK_BYTES", 1)


def problem(batch, rows, dtype, shift=0.0, scale=8.0, row_dtype=None, target=None):
    """Random unit features and rows of norms around 0.2; a third of the targets lives elsewhere."""
    stream = torch.Generator().manual_seed(7 * batch + rows)
    features = torch.randn(batch, DIM, generator=stream, dtype=torch.float64)
    features = torch.nn.functional.normalize(features, dim=1)
    table = torch.randn(rows, DIM, generator=stream, dtype=torch.float64) * 0.05
    if target is None:
        target = torch.randint(0, max(1, rows), (batch,), generator=stream)
        target[::3] = -1
        if rows == 0:
            target[:] = -1
    if row_dtype is None:
        row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Problem(
        features=features.to(dtype),
        rows=table.to(row_dtype),
        scale=scale,
        target=target,
        shift=shift,
    )


def truth(asked, coefficient):
    """total, pull, out in float64 without any shift, from one matrix and autograd."""
    features = asked.features.to(torch.float64, copy=True).requires_grad_()
    rows = asked.rows.to(torch.float64, copy=True).requires_grad_()
    norm = rows.detach().norm(dim=1, keepdim=True)
    u = asked.scale * features @ (rows / norm).T
    own = asked.target[:, None] == torch.arange(asked.num_rows)
    total = (u.exp() * ~own).sum(1)
    (pull,) = torch.autograd.grad(total.sum(), features, retain_graph=True)
    (out,) = torch.autograd.grad((total * coefficient.double()).sum(), rows)
    return total.detach(), pull, out


def relative(value, expected):
    return float((value.double() - expected).norm() / expected.norm().clamp_min(1e-300))


def run(kernel, asked, keep_bytes=WHOLE, ranges=None):
    """(total, pull, out, swept) with the shift undone; out is put together from `ranges` of rows."""
    swept = kernel.sweep(asked, want_pull=True, keep_bytes=keep_bytes)
    shift = torch.tensor(asked.shift or 0.0) if swept.maximum is None else swept.maximum
    back = shift.double().masked_fill(shift == -torch.inf, 0.0).exp()
    stream = torch.Generator().manual_seed(1)
    coefficient = torch.rand(asked.batch, generator=stream, dtype=torch.float64) + 0.5
    relevant = (coefficient * back).to(swept.total.dtype)
    out = torch.full_like(asked.rows, torch.nan, dtype=swept.total.dtype)
    for start, stop in ranges or [(0, asked.num_rows)]:
        if start < stop:
            kernel.class_gradient(swept, weigh(swept, relevant), start, stop, out[start:stop])
    pull = swept.pull.double() * back.reshape(-1, 1)
    return swept.total.double() * back, pull, out, swept, coefficient


def check(kernel, asked, **kwargs):
    """Every quantity against the truth; returns what was swept."""
    total, pull, out, swept, coefficient = run(kernel, asked, **kwargs)
    for value, expected in zip((total, pull, out), truth(asked, coefficient), strict=True):
        assert relative(value, expected) < TOLERANCE[asked.features.dtype]
    assert swept.total.dtype == asked.accumulate_dtype == swept.pull.dtype == out.dtype
    return swept


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@pytest.mark.parametrize("shift", [0.0, 5.0, None], ids=["none", "constant", "maximum"])
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (1, 255), (37, 256), (37, 2500), (64, 700)])
def test_against_float64(kernel, dtype, shift, batch, rows):
    check(KERNELS[kernel], problem(batch, rows, dtype, shift))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shift", [0.0, None])
def test_no_rows(kernel, shift):
    total, pull, out, swept, _ = run(KERNELS[kernel], problem(5, 0, torch.float32, shift))
    assert torch.equal(total, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(pull, torch.zeros(5, DIM, dtype=torch.float64))
    assert out.shape == (0, DIM)
    assert swept.maximum is None or (swept.maximum == -torch.inf).all()


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@pytest.mark.parametrize("shift", [0.0, None], ids=["none", "maximum"])
@pytest.mark.parametrize("blocks", [0, 1, 4, 10])
@pytest.mark.parametrize("left_over", [0, 100])
def test_budget(kernel, dtype, shift, blocks, left_over):
    """Whole blocks are kept within the budget; the rest is recomputed, also amid one range of rows."""
    asked = problem(37, 2500, dtype, shift)
    line = 37 * dtype.itemsize
    ranges = [(0, 100), (100, 1100), (1100, 1101), (1101, 2500)]
    budget = (blocks * 256 + left_over) * line
    swept = check(KERNELS[kernel], asked, keep_bytes=budget, ranges=ranges)
    assert swept.kept_bytes == min(blocks * 256, 2500) * line


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "row_dtype"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_rows_of_another_dtype(kernel, dtype, row_dtype):
    check(KERNELS[kernel], problem(37, 700, dtype, row_dtype=row_dtype), keep_bytes=256 * 37 * 8)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shift", [0.0, None], ids=["none", "maximum"])
@pytest.mark.parametrize("place", ["absent", "last block", "all the same"])
def test_targets(kernel, shift, place):
    target = {
        "absent": torch.full((16,), -1),
        "last block": torch.arange(584, 600),
        "all the same": torch.full((16,), 300),
    }[place]
    check(KERNELS[kernel], problem(16, 600, torch.float64, shift, target=target))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shift", [0.0, None], ids=["none", "maximum"])
def test_only_row_is_the_target(kernel, shift):
    """No negatives at all: zero, not NaN."""
    asked = problem(3, 1, torch.float32, shift, target=torch.zeros(3, dtype=torch.int64))
    total, pull, out, _, _ = run(KERNELS[kernel], asked)
    assert (total == 0).all()
    assert (pull == 0).all()
    assert (out == 0).all()


def test_blocked_equals_reference_closely():
    """Same rounding of operands: in bfloat16 the two differ by summation only."""
    asked = problem(37, 2500, torch.bfloat16)
    ours, theirs = run(blocked, asked), run(reference, asked)
    assert relative(ours[0], theirs[0]) < 1e-3
    assert relative(ours[1], theirs[1]) < 4e-3
    assert relative(ours[2], theirs[2].double()) < 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("candidates", ["all", mp.Uniform(0.5)])
def test_a_step_without_a_valid_sample(dtype, candidates):
    head = mp.ModelParallelSoftmax(8, 20, candidates=candidates, compute_dtype=dtype)
    before = head.class_rows(torch.arange(20))
    for labels in (torch.tensor([-1, -1]), torch.empty(0, dtype=torch.int64)):
        features = torch.randn(len(labels), 8, requires_grad=True)
        loss = head(features, labels)
        loss.backward()
        assert loss.item() == 0.0
        assert not features.grad.any()
    head.zero_grad()
    assert torch.equal(head.class_rows(torch.arange(20)), before)


def test_a_class_at_the_border_of_two_tiles_moves_as_one():
    """Three rows a class, of which the nearest pulls: E formed again must not see one of them moved."""
    dim, centres = 512, 3
    tile = block_size(dim, torch.float32, torch.device("cpu"))
    split = tile // centres  # the class whose rows straddle the border
    assert tile % centres
    moved = []
    for budget in (2**30, 0):
        head = mp.ModelParallelSoftmax(
            dim, 1000, objective=mp.CosFace(scale=30.0), weights=mp.SubCentres(centres),
            e_budget_bytes=budget, optimizer=mp.RowSGD(lr=0.1, momentum=0.0, weight_decay=0.0),
        )  # fmt: skip
        stream = torch.Generator().manual_seed(0)
        near = torch.nn.functional.normalize(torch.randn(1, dim, generator=stream), dim=1)
        far = torch.nn.functional.normalize(torch.randn(3, dim, generator=stream), dim=1)
        cosines = torch.tensor([[0.6], [0.59], [0.1]])  # near ties
        rows = (cosines * near + (1 - cosines.square()).sqrt() * far)[None]
        head.load_rows(torch.tensor([split]), rows)
        head(near.clone().requires_grad_(), torch.tensor([7])).backward()
        head.step()
        moved.append(head.class_rows(torch.tensor([split]))[0] - rows[0])
    assert moved[0][0].norm() > 1
    assert not moved[0][1:].any()
    assert torch.equal(moved[0][1:], moved[1][1:])
    torch.testing.assert_close(moved[0][0], moved[1][0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_logits_need_the_maximum(kernel):
    """Scale 300 overflows float32 without a shift; with a running maximum nothing does."""
    asked = problem(9, 700, torch.float32, None, scale=300.0)
    swept = KERNELS[kernel].sweep(asked, want_pull=True, keep_bytes=WHOLE)
    exact = torch.logsumexp(
        (300.0 * asked.features.double() @ torch.nn.functional.normalize(asked.rows.double()).T)
        .masked_fill(asked.target[:, None] == torch.arange(700), -torch.inf),
        dim=1,
    )  # fmt: skip
    assert torch.allclose(swept.maximum + swept.total.log(), exact.float(), rtol=1e-6, atol=1e-4)
    assert swept.total.isfinite().all()
    assert swept.pull.isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
def test_tiny_and_zero_rows(kernel, dtype):
    """A zero row has cosine 0 and no NaN; a row of norm 1e-6 counts like any other."""
    asked = problem(9, 300, dtype, scale=64.0)
    asked.rows[5] = 0
    asked.rows[6] = asked.features[0].to(asked.rows.dtype) * 1e-6
    swept = KERNELS[kernel].sweep(asked, want_pull=True, keep_bytes=WHOLE)
    out = torch.empty_like(asked.rows, dtype=swept.total.dtype)
    weighted = weigh(swept, 1 / swept.total)
    KERNELS[kernel].class_gradient(swept, weighted, 0, 300, out)
    assert swept.total.isfinite().all()
    assert swept.pull.isfinite().all()
    assert out.isfinite().all()
    assert torch.allclose(swept.total[0].log(), torch.tensor(64.0).to(swept.total), rtol=1e-2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_evaluation_keeps_nothing(kernel):
    asked = problem(37, 700, torch.float32)
    swept = KERNELS[kernel].sweep(asked, want_pull=False, keep_bytes=0)
    full = KERNELS[kernel].sweep(asked, want_pull=True, keep_bytes=WHOLE)
    assert swept.pull is None
    assert torch.equal(swept.total, full.total)
    assert kernel == "reference" or swept.kept is None


def test_spare_memory_is_used_again():
    asked = problem(37, 700, torch.float32)
    first = blocked.sweep(asked, want_pull=True, keep_bytes=WHOLE)
    expected = first.total.clone(), first.pull.clone(), first.kept.clone()
    again = blocked.sweep(asked, want_pull=True, keep_bytes=WHOLE, spare=first.kept.fill_(9.0))
    assert again.kept.data_ptr() == first.kept.data_ptr()
    assert all(map(torch.equal, (again.total, again.pull, again.kept), expected))
    other = problem(36, 700, torch.float32)
    fresh = blocked.sweep(other, want_pull=True, keep_bytes=WHOLE, spare=first.kept)
    assert fresh.kept.data_ptr() != first.kept.data_ptr()
    assert first.kept.untyped_storage().nbytes() == 0  # not two at once


def test_select():
    assert select.select("blocked") is blocked
    assert select.select("reference") is reference
    with pytest.raises(
        ValueError, match=r"kernel: 'fast'.*allowed: auto, blocked, native, reference, triton"
    ):
        select.select("fast")


@pytest.mark.parametrize("rows", [0, 5, 700])
@pytest.mark.parametrize("shift", [3.0, None])
@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_are_announced_once_and_final(kernel, shift, rows):
    """Before the last product of several blocks, so that a collective can run beside it."""
    asked = problem(9, rows, torch.float32, shift)
    heard = []

    def on_sums(swept):
        heard.append((swept.total.clone(), swept.maximum, swept.pull.clone()))

    swept = KERNELS[kernel].sweep(asked, want_pull=True, keep_bytes=WHOLE, on_sums=on_sums)
    ((total, maximum, pull),) = heard
    assert torch.equal(total, swept.total)
    assert maximum is swept.maximum
    assert torch.equal(pull, swept.pull) == (kernel == "reference" or not rows)


def test_triton_needs_a_gpu():
    """By name it is refused where it cannot run; `auto` is blocked beside no CPU."""
    with pytest.raises(ValueError, match=r"kernel: 'triton' needs .*; allowed here: auto, blocked"):
        select.select("triton")
    with pytest.raises(ValueError, match=r"kernel: 'triton' needs "):
        select.select("triton", torch.device("meta"))
    assert select.select("auto", torch.device("meta")) is blocked
