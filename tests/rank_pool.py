"""One pool of four processes that serves every test that needs ranks.

Spawning a process and importing torch costs seconds, so it is done once. A job is a function of a test file,
run on the first `world` processes, each joined to a fresh gloo group through a file store (never a port).
The failing rank's traceback comes back as text. A pool in which a rank hangs is killed and made anew.
"""

import importlib.util
import io
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import torch

MAX_WORLD = 4
JOB_TIMEOUT_S = 90.0
COLLECTIVE_TIMEOUT_S = 30.0


class RankPool:
    """Processes that run `function(**kwargs)` with an initialised process group."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks")
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []
        self._jobs = 0

    def _start(self) -> None:
        address = os.path.join(self._folder.name, f"socket{self._jobs}")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with Listener(address, "AF_UNIX") as listener:
            for _ in range(MAX_WORLD):
                command = [sys.executable, __file__, address]
                self._processes.append(subprocess.Popen(command, env=environment))
            self._connections = [listener.accept() for _ in self._processes]

    def run(self, function, world: int, **kwargs) -> list:
        """Results of all ranks, in rank order; raises with the tracebacks of those that failed."""
        if not self._processes:
            self._start()
        self._jobs += 1
        store = os.path.join(self._folder.name, f"store{self._jobs}")
        source = sys.modules[function.__module__].__file__
        for rank, connection in enumerate(self._connections[:world]):
            job = (store, world, rank, source, function.__name__, kwargs)
            connection.send_bytes(pickle.dumps(job))
        deadline = time.monotonic() + JOB_TIMEOUT_S
        answers = []
        for connection in self._connections[:world]:
            if not connection.poll(max(0.0, deadline - time.monotonic())):
                self._stop()
                raise AssertionError(f"{function.__name__}: a rank did not answer; pool restarted")
            answers.append(connection.recv())
        failures = [f"rank {r}:\n{text}" for r, (ok, text) in enumerate(answers) if not ok]
        if failures:
            raise AssertionError("\n".join(failures))
        return [torch.load(io.BytesIO(data), weights_only=False) for _, data in answers]

    def close(self) -> None:
        """End the processes and remove their files."""
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []


def load_function(source: str, name: str):
    """A function of a test file, imported by path, once."""
    key = f"ranked_{abs(hash(source))}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, source)
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return getattr(sys.modules[key], name)


def run_job(store: str, world: int, rank: int, source: str, name: str, kwargs: dict):
    """Join the group, run, leave the group."""
    import datetime

    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, world),
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S),
    )
    try:
        return load_function(source, name)(**kwargs)
    finally:
        dist.destroy_process_group()


def serve(address: str, run: Callable) -> None:
    """Answer jobs, the pickled arguments of `run`, until the parent is gone."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    with Client(address, "AF_UNIX") as connection:
        while True:
            try:
                job = connection.recv_bytes()
            except EOFError:
                return
            try:
                data = io.BytesIO()
                torch.save(run(*pickle.loads(job)), data)
                connection.send((True, data.getvalue()))
            except Exception:
                connection.send((False, traceback.format_exc()))


if __name__ == "__main__":
    serve(sys.argv[1], run_job)
