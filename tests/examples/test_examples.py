"""Every file of examples/ trains, as its head says to run it."""

import re
import socket
import subprocess
import sys

import pytest

TORCHRUN = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node"
ACCELERATE = (
    "-m accelerate.commands.launch --cpu --mixed_precision no --dynamo_backend no --num_machines 1"
)


def trained(pytestconfig, command, steps=25):
    """(loss, target cosine) at the end of an example."""
    done = subprocess.run(
        [sys.executable, *command.split(), "--steps", str(steps)],
        cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^step (\d+): loss ([\d.]+), target cosine (-?[\d.]+)$", done.stdout, re.M)
    assert found, done.stdout
    assert int(found[-1][0]) == steps
    return float(found[-1][1]), float(found[-1][2])


@pytest.mark.parametrize(
    "command",
    [
        f"{TORCHRUN} 2 examples/plain_loop.py",
        "examples/lightning_module.py --accelerator cpu",
        f"{ACCELERATE} --num_processes 1 examples/accelerate_loop.py --cpu",
        f"{TORCHRUN} 1 examples/deepspeed_engine.py --stage 2",
    ],
    ids=["plain", "lightning", "accelerate", "deepspeed"],
)
def test_an_example_learns(pytestconfig, command):
    loss, cosine = trained(pytestconfig, command)
    assert loss < 8  # 11 or so at the start
    assert cosine > 0.3  # 0 at the start


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "examples/plain_loop.py",
        "examples/lightning_module.py --accelerator cpu --devices 2",
        f"{ACCELERATE} --num_processes 2 --main_process_port PORT examples/accelerate_loop.py --cpu",
        f"{TORCHRUN} 2 examples/deepspeed_engine.py --stage 3",
    ],
    ids=["plain", "lightning", "accelerate", "deepspeed"],
)
def test_an_example_learns_on_another_number_of_ranks(pytestconfig, command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command = command.replace("PORT", str(free.getsockname()[1]))
    loss, cosine = trained(pytestconfig, command, steps=60)
    assert loss < 3
    assert cosine > 0.5


def test_every_example_is_tried(pytestconfig):
    here = (pytestconfig.rootpath / "tests/examples/test_examples.py").read_text()
    for path in (pytestconfig.rootpath / "examples").glob("*.py"):
        if path.name != "patterns.py":
            assert here.count(f"examples/{path.name}") >= 2, path
