"""Signals to stop, as the processes of a loader take them: the step under way still needs its data.

Terminals, Slurm and torchrun send them to whole process groups. The training process hears them and ends its
helpers itself, so neither they nor the servers that Python starts for them (forkserver, resource tracker)
may end before.
"""

import signal
from multiprocessing import forkserver, resource_tracker

LINGER_S = 120
"""How long a worker that nobody ends lives after SIGTERM."""
STOP = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


def start_servers() -> None:
    """Start the forkserver, deaf to signals to stop, if none runs; those to this process wait so long."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        # Started by the tracker's own code, which lifts the mask behind itself: so it goes first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive(worker: int) -> None:
    """In a worker: go on; but SIGTERM, which is also how a worker that hangs is ended, ends it at last."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
