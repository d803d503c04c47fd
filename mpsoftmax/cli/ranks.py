"""Commands that several ranks run together: started by torchrun or deepspeed, or here with --nproc N."""

import argparse
import os
import sys

from mpsoftmax.launcher import environment_of, on_this_machine


def wants_ranks(options: argparse.Namespace) -> bool:
    """Whether this process is to start the ranks rather than to be one."""
    return options.nproc is not None and "RANK" not in os.environ


def spawn(num_ranks: int, given: list[str]) -> int:
    """Replace this process by torchrun (launcher.py) with `num_ranks` ranks of the same command."""
    if num_ranks < 1:
        raise ValueError(f"--nproc: {num_ranks}; allowed: at least 1")
    command = on_this_machine(num_ranks, ["-m", "mpsoftmax", *without_nproc(given)])
    sys.stdout.flush()
    os.execve(sys.executable, command, environment_of(num_ranks))


def without_nproc(given: list[str]) -> list[str]:
    """The arguments of a rank: those of the command that starts the ranks, without their number."""
    kept = list(given)
    for position, word in enumerate(given):
        if word == "--nproc":
            del kept[position : position + 2]
        elif word.startswith("--nproc="):
            del kept[position]
    return kept


def without_local_rank(given: list[str]) -> list[str]:
    """Arguments without the --local_rank=N that the deepspeed launcher puts first; LOCAL_RANK says it too."""
    return [word for word in given if not word.startswith(("--local_rank=", "--local-rank="))]
