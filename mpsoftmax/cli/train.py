"""`mpsoftmax train`."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mpsoftmax.cli.arguments import Commands, add_config, add_nproc, new_file
from mpsoftmax.cli.ranks import spawn, wants_ranks

if TYPE_CHECKING:
    from mpsoftmax.config import Config
    from mpsoftmax.plan.machines import Machine


def add(commands: Commands) -> argparse.ArgumentParser:
    """`train [CONFIG]` and its options."""
    train = commands.add_parser(
        "train",
        help="train a model",
        description="Train from a YAML file and key.path=value overrides, or from data.train=PATH alone: "
        "then what is not given is chosen from the data and said. Alone, with --nproc, or under torchrun or "
        "deepspeed on one or several nodes: the same run. A run folder that holds a checkpoint is continued.",
        epilog="""examples:
  mpsoftmax train data.train=faces.tar                  all else chosen from the data
  mpsoftmax train data.train=faces.tar --dry-run        only show what would be done
  mpsoftmax train configs/quickstart.yaml train.steps=200 --nproc 2

exit status: 0 trained to the last step; 1 a rank was lost; 2 a mistake in what was given;
  128 + signal if a signal asked to stop (130 Ctrl-C, 143 SIGTERM): a checkpoint was written""",
    )
    add_config(train)
    add_nproc(train)
    train.add_argument(
        "--print", action="store_true", help="print the resolved configuration and stop"
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print configuration and plan, write the first batch as a picture, and stop",
    )
    train.add_argument(
        "--picture",
        metavar="PNG",
        type=new_file,
        help="of --dry-run (default: RUN/first-batch.png)",
    )
    return train


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Train; the status says how it ended (stopping.py)."""
    from mpsoftmax.config import to_yaml
    from mpsoftmax.train.build import check_parts
    from mpsoftmax.train.settings import settings_of

    # As `python -m` and torchrun have it: a backbone beside the config is found by its import path.
    sys.path.insert(0, os.getcwd())
    world = options.nproc or int(os.environ.get("WORLD_SIZE", "1"))
    config, said = settings_of(options.config, options.overrides, world)
    check_parts(config)
    if options.picture and not options.dry_run:
        raise ValueError(f"--picture: {options.picture!r}; allowed with --dry-run")
    if options.print or options.dry_run:
        if said and options.dry_run:
            print(f"{said}\n")
        print(to_yaml(config), end="")
        return show(config, world, options.picture) if options.dry_run else 0
    if wants_ranks(options):
        return spawn(options.nproc, given)
    if said and os.environ.get("RANK", "0") == "0":
        print(said, flush=True)
    return train(config)


def show(config: "Config", world: int, picture: str | None) -> int:
    """What would be done: the plan of a step, and the first batch as a picture."""
    from pathlib import Path

    from mpsoftmax.data.contact_sheet import save_picture
    from mpsoftmax.plan.page import render
    from mpsoftmax.plan.planning import make_plan
    from mpsoftmax.train.first_batch import first_batch
    from mpsoftmax.train.inputs import total_steps

    sheet, images, sizes = first_batch(config)
    print(f"\n{render(make_plan(config, sizes, world, machine_here()))}\n")
    path = Path(picture or Path(config.run.dir) / "first-batch.png")
    save_picture(sheet, path)
    print(f"{total_steps(config, images):,} steps of {config.train.batch_size}")
    print(f"{path}: the first images as the network will see them, with their classes")
    print("nothing was trained; next: the same command without --dry-run")
    return 0


def machine_here() -> "Machine":
    """This process's device, for a plan: a GPU with the memory it has."""
    import torch

    from mpsoftmax.plan.machines import machine_found, machine_of
    from mpsoftmax.train.inputs import training_device

    device = training_device()
    if device.type == "cpu":
        return machine_of("cpu")
    found = torch.cuda.get_device_properties(device)
    return machine_found(found.name, found.total_memory)


def train(config: "Config") -> int:
    """As one rank, to the end."""
    from mpsoftmax.comm import connected
    from mpsoftmax.train.loop import Trainer
    from mpsoftmax.train.stopping import Stopped, end_with_parent

    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    with connected(config.train.timeout_s) as comm:
        try:
            with comm.naming(
                "a step's collectives"
            ):  # DDP's reductions are not called through comm
                trainer = Trainer(config, comm)
                with page_of(config, comm.rank):
                    summary = trainer.run()
        except Stopped as stopped:
            if comm.rank == 0:
                print(f"mpsoftmax train: {stopped}", flush=True)
            return stopped.status
        if comm.rank == 0:
            print(f"done: step {summary.steps}; results in {summary.folder}")
            print(f"next: {next_command(summary.folder, config)}")
    return 0


def next_command(folder: Path, config: "Config") -> str:
    """What judges the trained model, with a verification set that the training named."""
    judged_by = config.data.eval[0] if config.data.eval else "pairs.csv@FOLDER-OR-TAR"
    return shlex.join(["mpsoftmax", "evaluate", str(folder), "--data", judged_by])


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
        again = shlex.join(["mpsoftmax", "report", str(folder)])
        print(
            f"report: not written: {type(error).__name__}: {error}; try {again}",
            flush=True,
        )
