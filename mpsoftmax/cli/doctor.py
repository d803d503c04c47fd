"""`mpsoftmax doctor`."""

import argparse

from mpsoftmax.cli.arguments import Commands, add_config, add_json, add_nproc
from mpsoftmax.cli.ranks import without_nproc


def add(commands: Commands) -> argparse.ArgumentParser:
    """`doctor [CONFIG]` and its options."""
    doctor = commands.add_parser(
        "doctor",
        help="say whether machine, ranks and configuration go together",
        description="Versions, devices, limits, disk, data, and how the ranks reach each other: one page for "
        "an issue, without secrets and host names.",
        epilog="""example:
  mpsoftmax doctor configs/faces_small.yaml --nproc 2 --json doctor.json

exit status: 0 all is ok; 1 a line needs a look; 2 a mistake in what was given""",
    )
    add_config(doctor)
    add_nproc(doctor)
    add_json(doctor, "findings")
    doctor.add_argument(
        "--timeout-s", type=float, default=60.0, metavar="S", help="wait for a rank (default 60)"
    )
    doctor.add_argument("--quiet-status", action="store_true", help=argparse.SUPPRESS)
    return doctor


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Look; status 1 if a line needs a look."""
    from mpsoftmax.doctor.command import run as look

    return look(options, without_nproc(given))
