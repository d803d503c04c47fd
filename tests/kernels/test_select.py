"""The name `triton`, where its kernels can run, and the check that is made before they are taken."""

import torch

CPU = torch.device("cpu")


def by_name():
    """Under the interpreter the name is the module; `auto` is not."""
    from mpsoftmax.kernels import select, triton_sweep

    assert select.select("triton", CPU) is triton_sweep
    assert select.select("auto", CPU) is not triton_sweep


def check_finds_faults():
    """The check passes on sound kernels, and says which way is wrong, or failed to run, on others."""
    from mpsoftmax.kernels import triton_check, triton_sweep

    disagreement = triton_check.disagreement.__wrapped__
    assert disagreement(CPU) is None
    sound = triton_sweep.add_sums, triton_sweep.logits_kernel
    try:
        triton_sweep.add_sums = lambda sums, total, counts: sound[0](sums * 1.01, total, counts)
        assert "disagrees with reference (fused, torch.float32)" in disagreement(CPU)
        triton_sweep.add_sums = lambda sums, total, counts: total.fill_(torch.nan)
        assert "error nan" in disagreement(CPU)
        triton_sweep.add_sums, triton_sweep.logits_kernel = sound[0], None
        assert "failed (fused, torch.float32): TypeError" in disagreement(CPU)
    finally:
        triton_sweep.add_sums, triton_sweep.logits_kernel = sound


def refuses():
    """By name, on a GPU where it cannot run or disagrees: an error with the reason."""
    import pytest

    from mpsoftmax.kernels import blocked, select, triton_check, triton_sweep

    gpu = torch.device("cuda", 0)
    kept = select.triton_obstacle, triton_check.disagreement
    try:
        select.triton_obstacle = lambda device: None
        triton_check.disagreement = lambda device: "disagrees"
        assert select.select("auto", gpu) is blocked
        with pytest.raises(
            ValueError, match="kernel: 'triton' on 'cuda:0' disagrees; allowed here: auto"
        ):
            select.select("triton", gpu)
        triton_check.disagreement = lambda device: None
        assert select.select("triton", gpu) is triton_sweep
        select.triton_obstacle = lambda device: "needs more"
        with pytest.raises(ValueError, match="kernel: 'triton' needs more; allowed here: auto"):
            select.select("triton", gpu)
    finally:
        select.triton_obstacle, triton_check.disagreement = kept


def test_by_name(interpreter):
    interpreter.run(by_name)


def test_check_finds_faults(interpreter):
    interpreter.run(check_finds_faults)


def test_refuses(interpreter):
    interpreter.run(refuses)
