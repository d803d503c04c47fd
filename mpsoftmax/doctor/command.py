"""`mpsoftmax doctor`: asks every room, on every rank, and prints one page on rank 0."""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mpsoftmax.comm import connect, disconnect
from mpsoftmax.config import Config, load
from mpsoftmax.doctor.data import data
from mpsoftmax.doctor.disk import disk
from mpsoftmax.doctor.finding import Finding, anonymous, as_values, merged, render
from mpsoftmax.doctor.machine import machine
from mpsoftmax.doctor.ranks import ranks
from mpsoftmax.doctor.versions import version_of, versions
from mpsoftmax.launcher import environment_of, on_this_machine
from mpsoftmax.train.inputs import training_device

LOOK = 1


def run(options: argparse.Namespace, given: Sequence[str]) -> int:
    """One rank, or the process that starts the ranks.

    Returns:
        0 if all is ok, 1 if a line needs a look.

    Raises:
        ValueError: the configuration is not one, or an option is out of range.
    """
    config = configuration(options)
    if not 0 < options.timeout_s < float("inf"):
        raise ValueError(f"--timeout-s: {options.timeout_s}; allowed: a positive number")
    if options.nproc is not None and "RANK" not in os.environ:
        return in_ranks(options.nproc, given, options.json)
    rank = int(os.environ.get("RANK", "0"))
    findings = [anonymous(finding) for finding in examine(config, options.timeout_s)]
    if rank == 0:
        say(findings, options.json)
    healthy = all(finding.ok for finding in findings)
    return 0 if healthy or options.quiet_status else LOOK


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that is asked about; the defaults where none is given."""
    path, overrides = options.config, list(options.overrides)
    return load(path, overrides if path is not None else ["train.steps=1", *overrides])


def examine(config: Config, timeout_s: float) -> list[Finding]:
    """All findings of all ranks; the same on every rank. Where ranks cannot meet, this rank's own."""
    alone = [*versions(config), *safely("data and tracking", lambda: data(config))]
    try:
        comm = connect(timeout_s, join_s=timeout_s)
    except (RuntimeError, ValueError) as error:
        return [*alone, unreachable(error)]
    try:
        own = [*alone, *machine(config, comm)]
        speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one rank for each machine
        everyone = enumerate(comm.share(own if speaks else None))
        machines = merged({rank: found for rank, found in everyone if found is not None})
        together = [*disk(config.run.dir, comm), *ranks(config, comm, training_device())]
        return [*machines, *together]
    except ValueError as error:
        return [*alone, Finding("ranks", "settings", "do not fit these ranks", str(error))]
    except RuntimeError as error:
        return [*alone, unreachable(error)]
    finally:
        disconnect()


def safely(section: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """A room's findings; its own failure is one."""
    try:
        return look()
    except (ValueError, OSError) as error:
        return [Finding(section, section, "cannot be looked at", str(error))]


def unreachable(error: Exception) -> Finding:
    """Ranks that cannot talk."""
    text = " ".join(str(error).split())[:300]
    cure = (
        "start all ranks with one torchrun command a machine; open the ports between the machines; "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network that reaches the others"
    )
    return Finding("ranks", "ranks", f"cannot talk: {type(error).__name__}: {text}", cure)


def say(findings: list[Finding], out: str | None) -> None:
    """Print the page; write it as JSON where asked."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"mpsoftmax doctor, {version_of('mpsoftmax') or 'not installed'}, {date}"
    sys.stdout.write(render(findings, title) + "\n")
    sys.stdout.flush()
    if out:
        Path(out).write_text(json.dumps(as_values(findings, title), indent=1) + "\n")


def in_ranks(num_ranks: int, given: Sequence[str], out: str | None) -> int:
    """The same command in `num_ranks` ranks of this machine, and their common verdict.

    Torchrun reports any exit status but 0 as a crash: the ranks say 0, and the verdict is in their file.
    """
    if num_ranks < 1:
        raise ValueError(f"--nproc: {num_ranks}; allowed: at least 1")
    with tempfile.TemporaryDirectory(prefix="mpsoftmax-doctor-") as folder:
        answer = Path(folder) / "doctor.json"
        arguments = ["-m", "mpsoftmax", *given, "--json", str(answer), "--quiet-status"]
        command = on_this_machine(num_ranks, arguments)
        status = subprocess.run(command, env=environment_of(num_ranks)).returncode
        if not answer.exists():
            say([unreachable(RuntimeError(f"the ranks ended with status {status}"))], out)
            return LOOK
        text = answer.read_text()
    if out:
        Path(out).write_text(text)
    return 0 if json.loads(text)["ok"] else LOOK
