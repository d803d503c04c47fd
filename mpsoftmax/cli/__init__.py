"""The command line. One file a command: `add` says its arguments, `run` does it.

Nothing heavy is imported before the command is known: `mpsoftmax --help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from mpsoftmax.cli import (
    bench,
    clean,
    convert,
    doctor,
    embed,
    evaluate,
    export,
    inspect,
    plan,
    train,
)
from mpsoftmax.cli.ranks import without_local_rank

COMMANDS = (train, evaluate, embed, export, convert, inspect, clean, plan, bench, doctor)
"""In the order of `mpsoftmax --help`."""
USER_ERROR, LOST_RANK = 2, 1


def parser() -> argparse.ArgumentParser:
    """Commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="mpsoftmax",
        description="Model-parallel softmax training of embedding models with very many classes.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands).set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 if the command ended as asked, 2 for a user's mistake (one line says which).
    """
    given = without_local_rank(list(sys.argv[1:] if arguments is None else arguments))
    options = parsed(given)
    from mpsoftmax.comm import AgreedError
    from mpsoftmax.roll_call import LostRank

    try:
        return options.run(options, given)
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


def parsed(given: list[str]) -> argparse.Namespace:
    """The options; key.path=value overrides may stand before, between or after them."""
    options, rest = parser().parse_known_args(given)
    allowed = hasattr(options, "overrides")
    strange = [word for word in rest if not allowed or word.startswith("-") or "=" not in word]
    if strange:
        parser().error(f"unrecognized arguments: {' '.join(strange)}")
    if allowed:
        options.overrides = [*options.overrides, *rest]
    return options
