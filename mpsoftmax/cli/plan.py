"""`mpsoftmax plan`."""

import argparse
import os
import sys
from pathlib import Path

from mpsoftmax.cli.arguments import Commands, add_config, add_json

FIGURES = {
    "memory": "bytes",
    "flops": "FLOP/s of the head's products",
    "bandwidth": "bytes/s of device memory",
    "link": "bytes/s one way to another rank of the node (NVLink)",
    "network": "bytes/s one way and per rank to another node (InfiniBand)",
}


def add(commands: Commands) -> argparse.ArgumentParser:
    """`plan [CONFIG]` and its options."""
    plan = commands.add_parser(
        "plan",
        help="say what a training will cost: memory, communication, time",
        description="Arithmetic only: nothing is trained, and with CONFIG and --classes no data is opened. "
        "Without CONFIG, data.train=PATH is enough, as in train.",
        epilog="""examples:
  mpsoftmax plan data.train=faces.tar --gpus 2
  mpsoftmax plan configs/faces_small.yaml --classes 10000000 --gpus 8 --gpu H100-80GB train.batch_size=1024

exit status: 0, whether it fits or not; 2 a mistake in what was given""",
    )
    add_config(plan)
    plan.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks (default 1)")
    plan.add_argument(
        "--nodes", type=int, metavar="N", help="machines they are on (default: eight GPUs each)"
    )
    plan.add_argument(
        "--gpu",
        default="H100-80GB",
        metavar="NAME",
        help="machine of a rank (default H100-80GB); cpu: one core of a server",
    )
    plan.add_argument(
        "--classes", metavar="N", help="classes of data.train, or N,M,... of several datasets"
    )
    for name, text in FIGURES.items():
        plan.add_argument(
            f"--{name}", type=float, metavar="X", help=f"{text}, in place of the machine's"
        )
    add_json(plan, "plan")
    return plan


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Plan, on one page."""
    from mpsoftmax.plan.machines import machine_of
    from mpsoftmax.plan.page import render
    from mpsoftmax.plan.planning import class_sizes, make_plan, ranks_per_node
    from mpsoftmax.plan.values import as_json
    from mpsoftmax.train.build import check_parts
    from mpsoftmax.train.settings import settings_of

    sys.path.insert(0, os.getcwd())  # as in train
    per_node = ranks_per_node(options.gpus, options.nodes)
    figures = {name: getattr(options, name) for name in FIGURES}
    machine = machine_of(options.gpu, **figures, per_node=per_node)
    on_gpus = machine.kind == "cuda"
    config, said = settings_of(options.config, options.overrides, options.gpus, gpu=on_gpus)
    check_parts(config)
    made = make_plan(config, class_sizes(config, options.classes), options.gpus, machine)
    if said:
        print(f"{said}\n")
    print(render(made))
    if options.json:
        Path(options.json).write_text(as_json(made))
    return 0
