"""The command line. One file a command: `add` says its arguments, `run` does it.

Nothing heavy is imported before the command is known: `mpsoftmax --help` answers at once.
"""

import argparse
import gc
import os
import sys
from collections.abc import Sequence

from mpsoftmax.cli import (
    bench,
    clean,
    completion,
    convert,
    doctor,
    embed,
    evaluate,
    export,
    inspect,
    plan,
    report,
    train,
)
from mpsoftmax.cli.parser import Parser, meant
from mpsoftmax.cli.ranks import without_local_rank

COMMANDS = (
    train,
    evaluate,
    report,
    embed,
    export,
    convert,
    inspect,
    clean,
    plan,
    bench,
    doctor,
    completion,
)
"""In the order of `mpsoftmax --help`."""
USER_ERROR, LOST_RANK, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


def parser() -> Parser:
    """Commands and their arguments."""
    top = Parser(
        prog="mpsoftmax",
        description="Model-parallel softmax training of embedding models with very many classes.",
        epilog="""examples:
  mpsoftmax inspect faces.tar
  mpsoftmax train data.train=faces.tar
  mpsoftmax COMMAND --help

exit status of every command: 0 as asked; 2 a mistake in what was given, said in one line;
  130 interrupted; what else a command ends with its --help says""",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands).set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 if the command ended as asked, 2 for a user's mistake (one line says which), 130 if it
        was interrupted; others are a command's own.
    """
    given = without_local_rank(list(sys.argv[1:] if arguments is None else arguments))
    status = outcome(parsed(given), given)
    if "RANK" in os.environ:
        # With the last reference to a process group its threads end. One of gloo's that still holds tensors
        # when the interpreter ends asks for the interpreter's lock and aborts the process.
        gc.collect()
    return status


def outcome(options: argparse.Namespace, given: list[str]) -> int:
    """Run the command; its exit status, errors of the user's included."""
    from mpsoftmax.comm import AgreedError
    from mpsoftmax.roll_call import LostRank

    try:
        return options.run(options, given)
    except LostRank as error:
        print(f"mpsoftmax {options.command}: error: {error}", file=sys.stderr, flush=True)
        return LOST_RANK
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"mpsoftmax {options.command}: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except ValueError as error:
        complain(options.command, str(error), agreed=isinstance(error, AgreedError))
        return USER_ERROR
    except (
        FileNotFoundError,
        FileExistsError,
        IsADirectoryError,
        NotADirectoryError,
        PermissionError,
    ) as error:
        if error.filename is None:  # no path of the user's
            raise
        complain(options.command, f"{error.filename}: {error.strerror}", agreed=False)
        return USER_ERROR


def complain(command: str, message: str, *, agreed: bool) -> None:
    """Say what is wrong: what every rank met alike, rank 0 says; what one rank met alone, it says itself."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not agreed:
        where = "" if rank == "0" else f"rank {rank}: "
        print(f"mpsoftmax {command}: error: {where}{message}", file=sys.stderr, flush=True)


def parsed(given: list[str]) -> argparse.Namespace:
    """The options; key.path=value overrides may stand before, between or after them."""
    top = parser()
    options, rest = top.parse_known_args(given)
    allowed = hasattr(options, "overrides")
    strange = [word for word in rest if not allowed or word.startswith("-") or "=" not in word]
    if strange:
        command = command_parser(top, options)
        flag = strange[0].partition("=")[0]
        hint = meant(flag, command.options()) if flag.startswith("-") else ""
        command.error(f"unrecognized arguments: {' '.join(strange)}{hint}")
    if allowed:
        options.overrides = [*options.overrides, *rest]
        first = options.config
        if first is not None and "=" in first and not os.path.exists(first):
            options.config, options.overrides = None, [first, *options.overrides]
    return options


def command_parser(top: Parser, options: argparse.Namespace) -> Parser:
    """The parser of the command that was given."""
    found = top
    for name in (options.command, getattr(options, "what", None)):
        for action in found._actions:
            if isinstance(action, argparse._SubParsersAction) and name in action.choices:
                found = action.choices[name]
                break
    return found
