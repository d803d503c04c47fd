"""`mpsoftmax train`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mpsoftmax.cli.arguments import Commands, add_config, add_nproc
from mpsoftmax.cli.ranks import spawn, wants_ranks

if TYPE_CHECKING:
    from mpsoftmax.config import Config


def add(commands: Commands) -> argparse.ArgumentParser:
    """`train CONFIG` and its options."""
    train = commands.add_parser(
        "train",
        help="train a model",
        description="Train from a YAML file and key.path=value overrides. Alone, with --nproc, or under "
        "torchrun or deepspeed on one or several nodes: the same run. A run folder that holds a checkpoint "
        "is continued.",
        epilog="example: mpsoftmax train configs/quickstart.yaml train.steps=200 --nproc 2",
    )
    add_config(train)
    add_nproc(train)
    train.add_argument(
        "--print", action="store_true", help="print the resolved configuration and stop"
    )
    return train


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Train; the status says how it ended (stopping.py)."""
    from mpsoftmax.config import load, to_yaml
    from mpsoftmax.train.build import check_parts

    # As `python -m` and torchrun have it: a backbone beside the config is found by its import path.
    sys.path.insert(0, os.getcwd())
    config = load(options.config, options.overrides)
    check_parts(config)
    if options.print:
        print(to_yaml(config), end="")
        return 0
    if wants_ranks(options):
        return spawn(options.nproc, given)
    from mpsoftmax.comm import connect, disconnect
    from mpsoftmax.train.loop import Trainer
    from mpsoftmax.train.stopping import Stopped, end_with_parent

    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    comm = connect(config.train.timeout_s)
    try:
        with comm.naming("a step's collectives"):  # DDP's reductions are not called through comm
            trainer = Trainer(config, comm)
            with page_of(config, comm.rank):
                summary = trainer.run()
        if comm.rank == 0:
            print(f"done: step {summary.steps}; results in {summary.folder}")
    except Stopped as stopped:
        if comm.rank == 0:
            print(f"mpsoftmax train: {stopped}", flush=True)
        return stopped.status
    finally:
        disconnect()
    return 0


@contextlib.contextmanager
def page_of(config: "Config", rank: int) -> Iterator[None]:
    """Write RUN/report.html when training ends, however it does; no page is worth a training."""
    try:
        yield
    finally:
        if rank == 0 and config.track.report:
            write_page(Path(config.run.dir))


def write_page(folder: Path) -> None:
    """RUN/report.html, or a line that says why not."""
    try:
        from mpsoftmax.report import write_report

        print(f"report: {write_report([folder], folder / 'report.html')}", flush=True)
    except Exception as error:
        print(
            f"report: not written: {type(error).__name__}: {error}; try mpsoftmax report {folder}",
            flush=True,
        )
