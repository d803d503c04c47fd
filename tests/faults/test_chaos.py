"""Killed eight times, on 2 to 4 ranks: benchmarks/faults/chaos.py finds no difference and no damage."""

import json
import os
import subprocess
import sys

import pytest
from launched import ROOT


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_differs_after_eight_kills(tmp_path):
    command = [
        sys.executable,
        "benchmarks/faults/chaos.py",
        "--kills",
        "8",
        "--folder",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["good"]
    assert sum(world["kills"] for world in found["worlds"]) == 8
    assert sum(world["while_saving"] for world in found["worlds"]) >= 2
