"""torchrun, ending with a status that schedulers know: `python -m mpsoftmax.launcher ARGUMENTS-OF-TORCHRUN`.

torchrun itself ends with 1 whatever happened. Here a run that was asked to stop and has saved ends with 143
(SIGTERM, SIGUSR1) or 130 (SIGINT), one that failed with the status of the rank that failed first.
"""

import os
import signal
import sys
from collections.abc import Sequence

HEARD = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What is passed on to the ranks: torchrun's own, and what Slurm sends ahead of the time limit."""
PREEMPTED, INTERRUPTED = 143, 130
"""Exit statuses of a run that was asked to stop and has saved: by a scheduler, by a person."""


def status_of(signum: int) -> int:
    """Exit status of a run that a signal asked to stop."""
    return INTERRUPTED if signum == signal.SIGINT else PREEMPTED


def on_this_machine(num_ranks: int, arguments: Sequence[str]) -> list[str]:
    """The command that runs `python ARGUMENTS` in so many ranks of this machine; see environment_of."""
    ranks = ["--standalone", "--nproc-per-node", str(num_ranks)]
    return [sys.executable, "-m", "mpsoftmax.launcher", *ranks, *arguments]


def environment_of(num_ranks: int) -> dict[str, str]:
    """This process's environment for that command; what the user has set stays."""
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def main(arguments: list[str]) -> int:
    """Run torchrun with these arguments; its status."""
    # torch 2.13 keeps one store for all restarts otherwise, and new workers read dead addresses in it.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # DDP's advice to drop the flag that keeps resumed runs bit-identical (comm.py), once a rank.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import main as torchrun

    if "--signals-to-handle" in get_args_parser().format_help():  # since torch 2.9
        arguments = ["--signals-to-handle", HEARD, *arguments]
    if "--standalone" in arguments:
        # Not by the machine's name, which need not resolve, as in a container.
        arguments = ["--local-addr", "127.0.0.1", *arguments]
    try:
        torchrun(arguments)
    except SignalException as error:
        return status_of(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        print(f"mpsoftmax: rank {rank} ended first, with {how}", file=sys.stderr)
        return code if code >= 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
