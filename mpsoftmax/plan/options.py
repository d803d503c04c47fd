"""Arguments of `mpsoftmax plan`. Imports nothing heavy: the command line is built before torch is."""

import argparse

FIGURES = {
    "memory": "bytes",
    "flops": "FLOP/s of the head's products",
    "bandwidth": "bytes/s of device memory",
    "link": "bytes/s one way to another rank of the node (NVLink)",
    "network": "bytes/s one way and per rank to another node (InfiniBand)",
}


def add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`plan CONFIG` and its options."""
    plan = commands.add_parser(
        "plan",
        help="say what a training will cost: memory, communication, time",
        description="Arithmetic only: nothing is trained, and with --classes no data is opened.",
        epilog="example: mpsoftmax plan configs/faces_small.yaml --classes 10000000 --gpus 8 "
        "--gpu H100-80GB train.batch_size=1024",
    )
    plan.add_argument("config", help="YAML file; docs/configuration.md lists every key")
    plan.add_argument("overrides", nargs="*", metavar="key.path=value", help="single settings")
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
    plan.add_argument("--json", metavar="OUT", help="write the plan to this file too")
