"""The command line: mpsoftmax train | evaluate | convert | inspect | plan | bench | doctor."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpsoftmax.bench.options import add_bench
from mpsoftmax.doctor.options import add_doctor
from mpsoftmax.launcher import environment_of, on_this_machine
from mpsoftmax.plan.options import FIGURES, add_plan

USER_ERROR, LOST_RANK, DAMAGED = 2, 1, 1


def parser() -> argparse.ArgumentParser:
    """Commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="mpsoftmax",
        description="Model-parallel softmax training of embedding models with very many classes.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model",
        description="Train from a YAML file and key.path=value overrides. Alone, with --nproc, or under "
        "torchrun or deepspeed on one or several nodes: the same run. A run folder that holds a checkpoint "
        "is continued.",
        epilog="example: mpsoftmax train configs/quickstart.yaml train.steps=200 --nproc 2",
    )
    train.add_argument("config", help="YAML file; docs/configuration.md lists every key")
    train.add_argument("overrides", nargs="*", metavar="key.path=value", help="single settings")
    add_nproc(train)
    train.add_argument(
        "--print", action="store_true", help="print the resolved configuration and stop"
    )

    evaluate = commands.add_parser(
        "evaluate",
        help="judge a trained model",
        description="Verification accuracy, TAR at FAR, AUC and EER with confidence intervals.",
        epilog="example: mpsoftmax evaluate runs/faces --data lfw.bin",
    )
    evaluate.add_argument("model", help="run folder, or one of its checkpoints/step-N")
    evaluate.add_argument(
        "--data",
        required=True,
        help="glyphs-open, glyphs-closed, a .bin file, or a pair list as LIST or LIST@FOLDER-OR-TAR",
    )
    evaluate.add_argument("--protocol", choices=["verification"], default="verification")
    evaluate.add_argument(
        "--thresholds",
        choices=["exact", "insightface"],
        default="exact",
        help="exact: over all similarities; insightface: its grid, for comparison with arcface_torch",
    )
    evaluate.add_argument("--json", metavar="OUT", help="write the result to this file too")
    evaluate.add_argument(
        "--trust-code", action="store_true", help="import a backbone that the checkpoint names"
    )
    evaluate.add_argument("--baseline", action="store_true", help="also judge raw pixels")
    add_nproc(evaluate)

    convert = commands.add_parser(
        "convert",
        help="copy a data set into another format",
        description="Between image folder, .tar, .rec and .arrow; image bytes, order and labels are kept.",
    )
    convert.add_argument("source", help="folder, .tar, .rec, .arrow, glyphs or synthetic")
    convert.add_argument("destination", help="a new folder, or a file named .tar, .rec or .arrow")
    convert.add_argument(
        "--style", choices=["auto", "insightface", "im2rec"], default="auto", help="of .rec"
    )
    convert.add_argument("--regroup", action="store_true", help="order the images by class first")
    convert.add_argument(
        "--number-classes", action="store_true", help="name classes by their zero-padded index"
    )
    add_under(convert)

    inspect = commands.add_parser(
        "inspect",
        help="say what a data set or a run's checkpoints hold and what is wrong with them",
        description="Classes, images, class sizes, image sizes, problems. Of a run folder or a checkpoint: "
        "whether every file is what was written.",
    )
    inspect.add_argument(
        "path", help="folder, .tar, .rec, .arrow, .bin, glyphs, synthetic, run or checkpoint"
    )
    inspect.add_argument(
        "--sample",
        type=int,
        default=10_000,
        metavar="N",
        help="images decoded (default 10000; -1: all)",
    )
    add_under(inspect)
    add_bench(commands)
    add_plan(commands)
    add_doctor(commands)
    return top


def add_nproc(command: argparse.ArgumentParser) -> None:
    """--nproc N."""
    command.add_argument(
        "--nproc",
        type=int,
        metavar="N",
        help="start N ranks on this machine (default: one process)",
    )


def add_under(command: argparse.ArgumentParser) -> None:
    """--under PATH."""
    command.add_argument(
        "--under",
        default="",
        metavar="PATH",
        help="only the classes below this path of a folder or tar",
    )


def reader_options(options: argparse.Namespace) -> dict[str, Any]:
    """What --under asks of the reader."""
    return {"under": options.under} if options.under else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 if the command ended as asked, 2 for a user's mistake (one line says which).
    """
    given = without_local_rank(list(sys.argv[1:] if arguments is None else arguments))
    overridden = given[:1] in (["train"], ["plan"], ["doctor"])
    options = parse_overridden(given) if overridden else parser().parse_args(given)
    commands = {
        "train": train,
        "evaluate": evaluate,
        "convert": convert,
        "inspect": inspect,
        "bench": bench,
        "plan": plan,
        "doctor": doctor,
    }
    from mpsoftmax.comm import AgreedError
    from mpsoftmax.roll_call import LostRank

    try:
        return commands[options.command](options, given)
    except LostRank as error:
        print(f"mpsoftmax {options.command}: error: {error}", file=sys.stderr, flush=True)
        return LOST_RANK
    except ValueError as error:
        rank = os.environ.get("RANK", "0")
        # What every rank met alike, one of them says; what one rank met alone, it says itself.
        if rank == "0" or not isinstance(error, AgreedError):
            where = "" if rank == "0" else f"rank {rank}: "
            print(
                f"mpsoftmax {options.command}: error: {where}{error}", file=sys.stderr, flush=True
            )
        return USER_ERROR


def without_local_rank(given: list[str]) -> list[str]:
    """Arguments without the --local_rank=N that the deepspeed launcher puts first; LOCAL_RANK says it too."""
    return [word for word in given if not word.startswith(("--local_rank=", "--local-rank="))]


def parse_overridden(given: list[str]) -> argparse.Namespace:
    """`train`, `plan` or `doctor` with its overrides before, between or after the options."""
    options, rest = parser().parse_known_args(given)
    strange = [word for word in rest if word.startswith("-") or "=" not in word]
    if strange:
        parser().error(f"unrecognized arguments: {' '.join(strange)}")
    options.overrides = [*options.overrides, *rest]
    return options


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


def wants_ranks(options: argparse.Namespace) -> bool:
    """Whether this process is to start the ranks rather than to be one."""
    return options.nproc is not None and "RANK" not in os.environ


def train(options: argparse.Namespace, given: list[str]) -> int:
    """Mpsoftmax train."""
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
            summary = Trainer(config, comm).run()
        if comm.rank == 0:
            print(f"done: step {summary.steps}; results in {summary.folder}")
    except Stopped as stopped:
        if comm.rank == 0:
            print(f"mpsoftmax train: {stopped}", flush=True)
        return stopped.status
    finally:
        disconnect()
    return 0


def evaluate(options: argparse.Namespace, given: list[str]) -> int:
    """Mpsoftmax evaluate."""
    if wants_ranks(options):
        return spawn(options.nproc, given)
    from mpsoftmax.comm import connect, disconnect
    from mpsoftmax.train.judge import judge

    comm = connect(600.0)
    try:
        report = judge(
            options.model,
            options.data,
            comm,
            with_baseline=options.baseline,
            trust_code=options.trust_code,
            thresholds=options.thresholds,
        )
    finally:
        disconnect()
    if comm.rank == 0:
        print(report.text)
        if options.json:
            Path(options.json).write_text(json.dumps(report.values, indent=1) + "\n")
    return 0


def convert(options: argparse.Namespace, given: list[str]) -> int:
    """Mpsoftmax convert."""
    from mpsoftmax.data.convert import convert as run

    converted = run(
        options.source,
        options.destination,
        style=options.style,
        regroup=options.regroup,
        number_classes=options.number_classes,
        **reader_options(options),
    )
    print(
        f"{converted.path}: {converted.format}, {converted.num_images} images, "
        f"{converted.num_classes} classes"
    )
    return 0


def inspect(options: argparse.Namespace, given: list[str]) -> int:
    """Mpsoftmax inspect."""
    from mpsoftmax.train.verify import checkpoints_in, report

    checkpoints = checkpoints_in(Path(options.path))
    if checkpoints:
        text, good = report(checkpoints)
        print(text)
        return 0 if good else DAMAGED
    from mpsoftmax.data.inspect import inspect as run

    sample = None if options.sample == -1 else options.sample
    print(run(options.path, sample=sample, **reader_options(options)).render())
    return 0


def bench(options: argparse.Namespace, given: list[str]) -> int:
    """Mpsoftmax bench."""
    import importlib

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        importlib.import_module(f"mpsoftmax.bench.{options.what}").run(options)
    finally:
        torch.set_num_threads(threads)
    return 0


def doctor(options: argparse.Namespace, given: list[str]) -> int:
    """Mpsoftmax doctor."""
    from mpsoftmax.doctor.command import run

    return run(options, without_nproc(given))


def plan(options: argparse.Namespace, given: list[str]) -> int:
    """Mpsoftmax plan."""
    from mpsoftmax.config import load
    from mpsoftmax.plan.machines import machine_of
    from mpsoftmax.plan.page import render
    from mpsoftmax.plan.planning import class_sizes, make_plan, ranks_per_node
    from mpsoftmax.plan.values import as_json
    from mpsoftmax.train.build import check_parts

    sys.path.insert(0, os.getcwd())  # as in train
    per_node = ranks_per_node(options.gpus, options.nodes)
    figures = {name: getattr(options, name) for name in FIGURES}
    machine = machine_of(options.gpu, **figures, per_node=per_node)
    config = load(options.config, options.overrides)
    check_parts(config)
    made = make_plan(config, class_sizes(config, options.classes), options.gpus, machine)
    print(render(made))
    if options.json:
        Path(options.json).write_text(as_json(made))
    return 0
