"""The name `triton`, where its kernels can run, and the check `auto` makes before it takes them."""

import torch

CPU = torch.device("cpu")


def by_name():
    """Under the interpreter the name is the module; `auto` on a CPU stays with blocked."""
    from mpsoftmax.kernels import blocked, select, triton_sweep

    assert select.select("triton", CPU) is triton_sweep
    assert select.select("auto", CPU) is blocked


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


def falls_back():
    """`auto` on a device that Triton fails on is blocked, with a warning."""
    import logging

    from mpsoftmax.kernels import blocked, select, triton_check, triton_sweep

    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    select.logger.addHandler(handler)
    kept = select.triton_obstacle, triton_check.disagreement
    gpu = torch.device("cuda", 0)
    try:
        select.triton_obstacle = lambda device: None
        triton_check.disagreement = lambda device: "disagrees"
        assert select.select("auto", gpu) is blocked
        assert heard == ["kernel: auto is blocked on cuda:0: triton disagrees"]
        triton_check.disagreement = lambda device: None
        assert select.select("auto", gpu) is triton_sweep
        assert len(heard) == 1
    finally:
        select.triton_obstacle, triton_check.disagreement = kept
        select.logger.removeHandler(handler)


def test_by_name(interpreter):
    interpreter.run(by_name)


def test_check_finds_faults(interpreter):
    interpreter.run(check_finds_faults)


def test_auto_falls_back(interpreter):
    interpreter.run(falls_back)
