"""Trainings as users start them: processes of the command line, on which faults are brought about."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from small_runs import BASE

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (*BASE, "train.checkpoint_every=5", "train.steps=40")


class Launched:
    """A training in processes of its own.

    Args:
        folder: The run folder.
        overrides: Beside those of small_runs and a checkpoint every 5 of 40 steps.
        nproc: Ranks; None for one process without torchrun.
        restarts: How often torchrun starts the ranks again.
        launcher: Further arguments of torchrun.
        agents: Arguments that replace those of a single node.
        conf: --rdzv-conf that go with them.
        log: Tells the outputs of several agents apart.
        prefix: Command that the agent is started by.
        environment: Variables beside those of this process.
    """

    def __init__(
        self, folder, *overrides, nproc=2, restarts=0, launcher=(), agents=None, conf="", log="a",
        prefix=(), environment=None,
    ):  # fmt: skip
        self.folder = Path(folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        config = self.folder.parent / "base.yaml"
        config.write_text("{}\n")
        train = ["mpsoftmax", "train", str(config), *SETTINGS, f"run.dir={folder}", *overrides]
        command = [sys.executable, "-m", *train]
        if nproc is not None:
            ranks = agents or ("--standalone", "--nproc-per-node", str(nproc))
            settings = ("--rdzv-conf", conf) if conf else ()
            ranks = [*ranks, *settings, "--max-restarts", str(restarts), *launcher]
            command = [sys.executable, "-m", "mpsoftmax.launcher", *ranks, "-m", *train]
        self.output = self.folder.parent / f"{self.folder.name}-{log}.log"
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            **(environment or {}),
        }
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [*prefix, *command], stdout=file, stderr=file, env=variables, start_new_session=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pid in self.ranks().values():  # torchrun gives each rank a session of its own
            os.kill(pid, signal.SIGKILL)

    def ranks(self):
        """Process ids of the ranks, by rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                variables = dict(
                    word.partition(b"=")[::2]
                    for word in (path / "environ").read_bytes().split(b"\0")
                )
            except OSError:
                continue
            if f"run.dir={self.folder}".encode() in words and b"RANK" in variables:
                found[int(variables[b"RANK"])] = int(path.name)
        return found

    def steps(self):
        """Lines of training in metrics.jsonl so far."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_text().count('"kind": "train"') if metrics.exists() else 0

    def wait_for_step(self, step, timeout_s=200):
        """Until that many steps are logged."""
        deadline = time.monotonic() + timeout_s
        while self.steps() < step:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, f"no step {step}: {self.text()}"
            time.sleep(0.01)

    def end(self, timeout_s=350):
        """Its exit status."""
        return self.process.wait(timeout_s)

    def text(self):
        """What it printed."""
        return self.output.read_text(errors="replace")
