"""Arguments of `mpsoftmax doctor`. Imports nothing heavy: the command line is built before torch is."""

import argparse


def add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`doctor [CONFIG]` and its options."""
    doctor = commands.add_parser(
        "doctor",
        help="say whether machine, ranks and configuration go together",
        description="Versions, devices, limits, disk, data, and how the ranks reach each other: one page for "
        "an issue, without secrets and host names. Exit status 0 if all is ok, 1 if a line needs a look.",
        epilog="example: mpsoftmax doctor configs/faces_small.yaml --nproc 2 --json doctor.json",
    )
    doctor.add_argument("config", nargs="?", help="YAML file; default: the default settings")
    doctor.add_argument("overrides", nargs="*", metavar="key.path=value", help="single settings")
    doctor.add_argument(
        "--nproc",
        type=int,
        metavar="N",
        help="start N ranks on this machine (default: one process)",
    )
    doctor.add_argument("--json", metavar="OUT", help="write the findings to this file too")
    doctor.add_argument(
        "--timeout-s", type=float, default=60.0, metavar="S", help="wait for a rank (default 60)"
    )
    doctor.add_argument("--quiet-status", action="store_true", help=argparse.SUPPRESS)
