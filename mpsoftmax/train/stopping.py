"""Asked to stop by a signal: all ranks finish the same step, save, and end with a status schedulers know.

    SIGTERM, SIGUSR1    the scheduler takes the machine back: exit status 143, start the job again
    SIGINT              a person stops it: exit status 130

Signals reach ranks at different moments, or one rank only. A flag travels with every step, as a maximum over
the ranks that is begun before the step and read after it: it costs no waiting, and all ranks stop alike.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from mpsoftmax.comm import Comm, Pending
from mpsoftmax.launcher import status_of

ORDER = (None, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""What a flag of that value says; the largest wins."""
ONE_PRESS_S = 5.0
"""torchrun passes on a SIGINT that the terminal has sent already: within this time they are one."""


class Stopped(Exception):
    """Training ended before its last step because it was asked to; everything is saved.

    Args:
        signum: By which signal.
        step: After which step.

    Attributes:
        status: The exit status.
    """

    def __init__(self, signum: signal.Signals, step: int) -> None:
        super().__init__(
            f"stopped by {signum.name} after step {step}, which is saved; start again to go on"
        )
        self.status = status_of(signum)


class StopSignals:
    """Listens while it is entered. Signals are heard in the main thread only, as Python has it."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._flag, self._asked_s = 0, 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._asked: Pending | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            heard = ORDER[1:]
            self._before = {one: signal.signal(one, self._hear) for one in heard if one is not None}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self._flag and now - self._asked_s > ONE_PRESS_S
        if signum == signal.SIGINT and again:
            raise KeyboardInterrupt  # a person who does not want to wait for the checkpoint
        self._asked_s = self._asked_s if self._flag else now
        self._flag = max(self._flag, ORDER.index(signal.Signals(signum)))

    def ask(self) -> None:
        """Before a step: begin to ask all ranks; collective."""
        self._asked = self._comm.start_all_reduce_max(
            torch.tensor([self._flag], device=self._comm.device)
        )

    def agreed(self) -> signal.Signals | None:
        """After it: the signal that some rank had got before the step; the same on all ranks."""
        assert self._asked is not None, "ask() first"
        return ORDER[int(self._asked.wait())]


def end_with_parent(period_s: float = 1.0) -> None:
    """From now on this process ends when the one that started it does.

    torchrun gives its ranks sessions of their own: killed, it would leave them training into a run folder
    that its successor writes to.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(period_s)
        sys.stderr.write("mpsoftmax train: error: the launcher was killed; this rank ends\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
