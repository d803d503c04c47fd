"""Whole heads whose rows move in the kernel of the class gradient, in the interpreter, against `blocked`."""

import pytest
import torch
from kernel_cases import relative
from update_cases import ADAMW, SGD, compare_heads, trained

import mpsoftmax as mp


def compare(**axes):
    """Runs in the interpreter's process."""
    compare_heads("triton", **axes)


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
