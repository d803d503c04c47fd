"""A process with an environment of its own that runs functions of test files, one after the other.

Triton reads TRITON_INTERPRET when it is first imported, so its interpreter and its compiler need a process
each, and neither is the one pytest runs in. Importing torch costs seconds: the process stays.
"""

import io
import os
import pickle
import subprocess
import sys
import tempfile
from multiprocessing.connection import Listener

import torch
from rank_pool import load_function, serve

JOB_TIMEOUT_S = 110.0


class LoneWorker:
    """Runs `function(**kwargs)` under an environment.

    Args:
        **environment: Variables beside those of this process.
    """

    def __init__(self, **environment: str) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process = self._connection = None

    def run(self, function, **kwargs):
        """What the function returns; raises with its traceback where it failed."""
        if self._process is None:
            self._start()
        source = sys.modules[function.__module__].__file__
        self._connection.send_bytes(pickle.dumps((source, function.__name__, kwargs)))
        if not self._connection.poll(JOB_TIMEOUT_S):
            self.close()
            raise AssertionError(f"{function.__name__}: no answer; process ended")
        done, answer = self._connection.recv()
        if not done:
            raise AssertionError(answer)
        return torch.load(io.BytesIO(answer), weights_only=False)

    def _start(self) -> None:
        with tempfile.TemporaryDirectory(prefix="worker") as folder:
            address = os.path.join(folder, "socket")
            with Listener(address, "AF_UNIX") as listener:
                command = [sys.executable, __file__, address]
                self._process = subprocess.Popen(command, env=self._environment)
                self._connection = listener.accept()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
        self._process = self._connection = None


def run_job(source: str, name: str, kwargs: dict):
    """One function of a test file."""
    return load_function(source, name)(**kwargs)


if __name__ == "__main__":
    serve(sys.argv[1], run_job)
