"""Offline runs synced later: what `wandb sync` makes of a run that was stopped twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import settings
from wandb_server import serving

from mpsoftmax.track.log import Log

PARTS = ((0, 5), (4, 8), (6, 10))  # each goes on from a checkpoint before the last line


def one_part(folder, start, stop):
    """The lines of one process."""
    config = settings(Path(folder), "track.wandb=offline")
    log = Log(config, Path(folder), 10, start, 0, world=1, read_backbone=dict)
    for step in range(start + 1, stop + 1):
        log.write({"kind": "train", "step": step, "loss": step / 2})
    log.close(stop)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_processes_become_one_run(tmp_path):
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [tests, os.path.join(tests, "track")]
    for start, stop in PARTS:
        code = f"import sys\nsys.path[:0] = {paths!r}\nfrom test_sync import one_part\n"
        code += f"one_part({str(tmp_path)!r}, {start}, {stop})\n"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with serving() as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        command = [sys.executable, "-m", "wandb", "sync", str(tmp_path / "wandb")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (run,) = server.histories
    assert run == (tmp_path / "wandb" / "run_id").read_text()
    assert server.resumed == [False, True, True]
    lines = [(line["step"], line["train/loss"]) for line in server.histories[run]]
    assert lines == [(s, s / 2) for start, stop in PARTS for s in range(start + 1, stop + 1)]
    numbers = [line["_step"] for line in server.histories[run]]
    assert numbers == sorted(set(numbers))  # nothing was dropped or written over
    assert server.alerts == ["training stopped"] * 2
