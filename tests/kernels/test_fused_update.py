"""Whole heads whose rows move in the kernel of the class gradient, in the interpreter, against `blocked`."""

import pytest
import torch
from kernel_cases import relative

import mpsoftmax as mp


def trained(kernel, calls, compute_dtype=torch.float32, **axes):
    """State of a head of 40 classes after three steps, and whether each moved its rows in the kernel."""
    from mpsoftmax.head import head as head_module

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


def compare(limit=2e-5, calls=1, taken=True, **axes):
    """Runs in the interpreter's process."""
    ours, seen = trained("triton", calls, **axes)
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


SGD, ADAMW = mp.RowSGD(lr=0.3), mp.RowAdamW(lr=0.05)


@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    "axes",
    [
        {"objective": "arcface"},
        {"objective": "sphereface", "candidates": mp.Uniform(0.5)},
        {"objective": "npcface", "candidates": mp.DSoftmaxK(0.4, batch_labels="included")},
        {"objective": "dsoftmax", "candidates": mp.DSoftmaxB(0.5), "untouched": "lazy"},
        {"objective": "arcface", "e_budget_bytes": 0},
    ],
    ids=["all", "uniform", "K with the batch's labels", "B, lazy", "nothing kept"],
)
def test_rows_move_in_the_kernel(interpreter, rule, axes):
    interpreter.run(compare, optimizer=rule, **axes)


def test_in_bfloat16(interpreter):
    """The fused gradient is not rounded to bfloat16 before the row moves; that of a tile is."""
    interpreter.run(compare, limit=3e-2, compute_dtype=torch.bfloat16, optimizer=SGD)


@pytest.mark.parametrize(
    "axes",
    [
        {"calls": 2},
        {"candidates": mp.DSoftmaxK(0.4)},
        {"candidates": mp.Uniform(0.5), "untouched": "lazy"},
        {"candidates": mp.Uniform(0.5), "storage": "host"},
        {"weights": mp.SubCentres(2)},
    ],
    ids=["two backward calls", "own rows apart", "rows behind", "rows elsewhere", "sub-centres"],
)
def test_tiles_take_the_rest(interpreter, axes):
    """Two backward calls; rows not swept; rows that lag behind from the second step on; ..."""
    if axes.get("untouched") == "lazy":
        interpreter.run(first_step_only, **axes)
    else:
        interpreter.run(compare, taken=False, optimizer=SGD, **axes)


def first_step_only(**axes):
    """The first step finds no row behind; those after it do."""
    _, seen = trained("triton", 1, optimizer=SGD, **axes)
    assert seen == [True, False, False]
    compare_states(axes)


def compare_states(axes):
    ours, theirs = (
        trained(kernel, 1, optimizer=SGD, **axes)[0] for kernel in ("triton", "blocked")
    )
    assert relative(ours["weight"], theirs["weight"]) < 2e-5
    assert torch.equal(ours["row_step"], theirs["row_step"])
