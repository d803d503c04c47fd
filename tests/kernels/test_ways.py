"""The way a problem takes under the name `triton`, and whole heads that run by it, in the interpreter."""

from dataclasses import replace

import pytest
import torch
from kernel_cases import awkward, relative

from mpsoftmax.kernels.triton_launch import way_of


@pytest.mark.parametrize(
    ("batch", "dtype", "way"),
    [
        (1, torch.float32, "fused"),
        (32, torch.float32, "fused"),
        (33, torch.float32, "plain"),
        (1024, torch.bfloat16, "fused"),
        (1025, torch.bfloat16, "plain"),
        (9, torch.float64, "blocked"),
    ],
)
def test_rule_of_shape_and_dtype(batch, dtype, way):
    assert way_of(awkward(batch, 8, 6, dtype, 3.0)) == way


def test_rule_of_rows():
    """Sub-centres, float64 rows, no rows, no samples."""
    asked = awkward(9, 8, 6, torch.float32, 3.0)
    assert way_of(asked) == "fused"
    assert way_of(replace(asked, num_centres=2)) == "blocked"
    assert way_of(replace(asked, rows=asked.rows.double())) == "blocked"
    assert way_of(replace(asked, rows=asked.rows[:0])) == "blocked"
    assert way_of(replace(asked, features=asked.features[:0])) == "blocked"


def handed_over():
    """Runs in the interpreter's process: what blocked takes is blocked's to the bit, and said once."""
    import logging

    from mpsoftmax.kernels import blocked, triton_sweep
    from mpsoftmax.kernels.problem import weigh

    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    triton_sweep.logger.addHandler(handler)
    triton_sweep.say_blocked_once.cache_clear()  # another test of this process may have heard it
    asked = awkward(9, 40, 6, torch.float32, 3.0)
    target = torch.where(asked.target >= 0, asked.target // 2, -1)
    centres = replace(asked, num_centres=2, target=target)
    wide = replace(asked, features=asked.features.double(), rows=asked.rows.double())
    try:
        for problem in (centres, centres, wide):
            answers = []
            for kernel in (triton_sweep, blocked):
                swept = kernel.sweep(problem, want_pull=True, keep_bytes=2**30)
                out = torch.empty(40, 6, dtype=swept.total.dtype)
                kernel.class_gradient(swept, weigh(swept, 1 / swept.total), 0, 40, out)
                answers.append((swept.total, swept.pull, out))
            assert all(map(torch.equal, *answers))
        nothing = replace(asked, rows=asked.rows[:0], target=torch.full((9,), -1))
        assert (triton_sweep.sweep(nothing, want_pull=False, keep_bytes=0).total == 0).all()
    finally:
        triton_sweep.logger.removeHandler(handler)
    assert len(heard) == 2, heard
    assert "2 row(s) a class" in heard[0]
    assert "torch.float64" in heard[1]


def test_what_blocked_takes(interpreter):
    interpreter.run(handed_over)


def steps(kernel, objective, candidates, dtype):
    """(losses, features' gradients, rows) of two steps of a head of 40 classes on one process."""
    from mpsoftmax import ModelParallelSoftmax

    head = ModelParallelSoftmax(
        12,
        40,
        objective=objective,
        candidates=candidates,
        kernel=kernel,
        compute_dtype=dtype,
        e_budget_bytes=0 if candidates == "all" else 2**30,
        seed=5,
    )
    stream = torch.Generator().manual_seed(2)
    losses, gradients = [], []
    for _ in range(2):
        features = torch.randn(11, 12, generator=stream).requires_grad_()
        labels = torch.randint(0, 40, (11,), generator=stream)
        loss = head(features, labels)
        loss.backward()
        head.step()
        losses.append(loss.detach())
        gradients.append(features.grad)
    return torch.stack(losses), torch.cat(gradients), head.class_rows(torch.arange(40))


def compare_heads(objective, candidates, dtype, limit):
    """Runs in the interpreter's process: a head on Triton's kernels against one on the reference."""
    from mpsoftmax.kernels import triton_sweep

    calls = []
    sound = triton_sweep.run
    triton_sweep.run = lambda kernel, *args, **kwargs: (
        calls.append(kernel.__name__),
        sound(kernel, *args, **kwargs),
    )
    try:
        ours = steps("triton", objective, candidates, dtype)
        assert "logits_kernel" in calls
        seen = len(calls)
        theirs = steps("reference", objective, candidates, dtype)
        assert len(calls) == seen
    finally:
        triton_sweep.run = sound
    for found, expected in zip(ours, theirs, strict=True):
        assert relative(found, expected) < limit


@pytest.mark.parametrize(
    ("objective", "dtype", "limit"),
    [
        ("arcface", torch.float32, 1e-5),
        ("npcface", torch.float32, 1e-5),
        ("sphereface", torch.float32, 1e-5),
        ("arcface", torch.bfloat16, 3e-2),
    ],
    ids=["arcface", "npcface", "sphereface", "bfloat16"],
)
def test_head(interpreter, objective, dtype, limit):
    """Loss, features' gradient and rows over two steps; nothing is kept, so E is recomputed."""
    interpreter.run(compare_heads, objective=objective, candidates="all", dtype=dtype, limit=limit)


def test_head_with_sampled_rows(interpreter):
    """Candidates are gathered rows; E is kept."""
    from mpsoftmax import Uniform

    interpreter.run(
        compare_heads,
        objective="arcface",
        candidates=Uniform(rate=0.5),
        dtype=torch.float32,
        limit=1e-5,
    )
