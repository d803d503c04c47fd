"""The Triton sweep in Triton's interpreter against `reference`: every variant, values and gradients."""

import pytest
import torch
from kernel_cases import SCALE, WISHES, awkward, relative, triton_set_to

WHOLE = 2**40
WAYS = ["fused", "plain"]
DTYPES = [torch.float32, torch.bfloat16]
IDS = ["float32", "bfloat16"]
# In bfloat16 the plain way rounds where the reference does, but for a maximum that is not yet the last one;
# the fused way does not round logits, so it is also held to be no farther from float64 than the reference.
TOLERANCE = {
    ("plain", torch.float32): 3e-6,
    ("fused", torch.float32): 3e-6,
    ("plain", torch.bfloat16): 6e-3,
    ("fused", torch.bfloat16): 4e-2,
}


def gradient(kernel, swept, ranges):
    """The class gradient put together from `ranges` of rows, at fixed coefficients."""
    from mpsoftmax.kernels.problem import weigh

    stream = torch.Generator().manual_seed(1)
    coefficient = torch.rand(swept.problem.batch, generator=stream) + 0.5
    if swept.maximum is not None:
        coefficient = coefficient * torch.exp(swept.maximum.nan_to_num(neginf=0.0) - 3.0)
    out = torch.full_like(swept.problem.rows, torch.nan)
    for start, stop in ranges:
        kernel.class_gradient(swept, weigh(swept, coefficient), start, stop, out[start:stop])
    return out


def answers(kernel, swept, ranges):
    """Total, pull and class gradient with a running maximum undone."""
    back = torch.ones_like(swept.total)
    if swept.maximum is not None:
        back = swept.maximum.nan_to_num(neginf=0.0).exp()
    return swept.total * back, swept.pull * back[:, None], gradient(kernel, swept, ranges)


def compare_counts(ours, theirs, limit):
    for name, count in vars(theirs).items():
        found = getattr(ours, name)
        assert (found is None) == (count is None)
        if name == "hard_sum" and count is not None:
            assert relative(found, count) < limit
        elif count is not None:
            assert torch.equal(found, count), name


def compare(case, way, **settings):
    """Runs in the interpreter's process, every problem taking `way`; see compare_this."""
    with triton_set_to(way):
        return compare_this(case, way, **settings)


def compare_this(case, way, keep_bytes=WHOLE, ranges=None):
    """Every quantity against the reference; the bytes kept."""
    from dataclasses import replace

    from mpsoftmax.kernels import reference, triton_sweep

    asked = awkward(**case)
    whole = [(0, asked.num_rows)]
    ours = triton_sweep.sweep(asked, want_pull=True, keep_bytes=keep_bytes)
    theirs = reference.sweep(asked, want_pull=True, keep_bytes=WHOLE)
    limit = TOLERANCE[way, asked.features.dtype]
    assert ours.total.dtype == ours.pull.dtype == torch.float32
    found = answers(triton_sweep, ours, ranges or whole)
    expected = answers(reference, theirs, whole)
    for value, other in zip(found, expected, strict=True):
        assert relative(value, other) < limit
    assert relative(ours.factor, theirs.factor) < 1e-6
    compare_counts(ours.counts, theirs.counts, limit)
    if (way, asked.features.dtype) == ("fused", torch.bfloat16) and asked.batch > 1:
        wide = replace(asked, features=asked.features.double(), rows=asked.rows.double())
        swept = reference.sweep(wide, want_pull=True, keep_bytes=WHOLE)
        exact = answers(reference, swept, whole)
        for value, other, truth in zip(found, expected, exact, strict=True):
            assert relative(value, truth) < 1.25 * relative(other, truth) + 2e-3
    return ours.kept_bytes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS)
@pytest.mark.parametrize("shift", [3.0, None], ids=["constant", "maximum"])
@pytest.mark.parametrize(
    ("batch", "rows", "dim"),
    [(1, 1, 5), (37, 300, 24), pytest.param(130, 131, 70, marks=pytest.mark.slow)],
)
def test_plain_problem(interpreter, way, dtype, shift, batch, rows, dim):
    case = {"batch": batch, "rows": rows, "dim": dim, "dtype": dtype, "shift": shift}
    interpreter.run(compare, case=case, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("dtype", "shift"),
    [(torch.float32, 3.0), (torch.bfloat16, 3.0), (torch.float32, None)],
    ids=str,
)
@pytest.mark.parametrize("wish", WISHES)
def test_wishes(interpreter, way, dtype, shift, wish):
    case = {"batch": 21, "rows": 150, "dim": 12, "dtype": dtype, "shift": shift, "wish": wish}
    interpreter.run(compare, case=case, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [3.0, None], ids=["constant", "maximum"])
@pytest.mark.parametrize("kept_lines", [0, 200, 300])
def test_budget(interpreter, way, shift, kept_lines):
    """Whole blocks are kept within the budget; the rest is recomputed, also amid one range of rows."""
    case = {
        "batch": 9,
        "rows": 300,
        "dim": 12,
        "dtype": torch.float32,
        "shift": shift,
        "wish": "all",
    }
    ranges = [(0, 100), (100, 260), (260, 261), (261, 300)]
    budget = kept_lines * 9 * 4
    kept = interpreter.run(compare, case=case, way=way, keep_bytes=budget, ranges=ranges)
    assert kept == (300 if kept_lines == 300 else kept_lines // 128 * 128) * 9 * 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [3.0, None], ids=["constant", "maximum"])
@pytest.mark.parametrize("place", ["elsewhere", "last tile", "all the same"])
def test_targets(interpreter, way, shift, place):
    target = {
        "elsewhere": torch.full((16,), -1),
        "last tile": torch.arange(124, 140),
        "all the same": torch.full((16,), 130),
    }[place]
    case = {"batch": 16, "rows": 140, "dim": 10, "dtype": torch.float32, "shift": shift}
    interpreter.run(compare, case={**case, "target": target}, way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [3.0, None], ids=["constant", "maximum"])
def test_only_row_is_the_target(interpreter, way, shift):
    """No negatives at all: zero, not NaN."""
    case = {"batch": 3, "rows": 1, "dim": 6, "dtype": torch.float32, "shift": shift}
    interpreter.run(compare, case={**case, "target": torch.zeros(3, dtype=torch.int64)}, way=way)


def hard_numbers(way):
    """A zero row, a row of norm 1e-6, and a scale that overflows float32 without a running maximum."""
    from dataclasses import replace

    from mpsoftmax.kernels import reference, triton_sweep
    from mpsoftmax.kernels.problem import weigh

    with triton_set_to(way):
        asked = awkward(9, 140, 10, torch.float32, None)
        asked.rows[5] = 0
        asked.rows[6] = asked.features[0] * 1e-6
        asked = replace(asked, scale=300.0)
        ours = triton_sweep.sweep(asked, want_pull=True, keep_bytes=WHOLE)
        theirs = reference.sweep(asked, want_pull=True, keep_bytes=WHOLE)
        out, other = torch.empty(140, 10), torch.empty(140, 10)
        triton_sweep.class_gradient(ours, weigh(ours, 1 / ours.total), 0, 140, out)
        reference.class_gradient(theirs, weigh(theirs, 1 / theirs.total), 0, 140, other)
        # Logits of 300 carry float32 errors of 3e-5; the zero row's factor is 3e14, the others' near 1e3.
        usable = torch.arange(140) != 5
        assert out.isfinite().all()
        assert relative(out[usable], other[usable]) < 1e-3
        lse, expected = (s.maximum + s.total.log() for s in (ours, theirs))
        assert (lse - expected).abs().max() < 1e-3 * SCALE
        assert relative(ours.pull, theirs.pull) < 1e-3
        assert abs(float(lse[0]) - 300.0) < 1.0


@pytest.mark.parametrize("way", WAYS)
def test_hard_numbers(interpreter, way):
    interpreter.run(hard_numbers, way=way)


def same_bits(way):
    """Sums are added in one order; spare memory is used again; evaluation keeps nothing."""
    from mpsoftmax.kernels import triton_sweep

    with triton_set_to(way):
        asked = awkward(37, 300, 24, torch.float32, 3.0)
        first = triton_sweep.sweep(asked, want_pull=True, keep_bytes=WHOLE)
        expected = first.total.clone(), first.pull.clone(), first.kept.clone()
        spare = first.kept.fill_(9.0)
        again = triton_sweep.sweep(asked, want_pull=True, keep_bytes=WHOLE, spare=spare)
        assert again.kept.data_ptr() == spare.data_ptr()
        assert all(map(torch.equal, (again.total, again.pull, again.kept), expected))
        alone = triton_sweep.sweep(asked, want_pull=False, keep_bytes=WHOLE)
        assert alone.pull is None
        assert alone.kept is None
        assert torch.equal(alone.total, expected[0])


@pytest.mark.parametrize("way", WAYS)
def test_same_bits(interpreter, way):
    interpreter.run(same_bits, way=way)
