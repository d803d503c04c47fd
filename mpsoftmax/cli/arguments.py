"""Arguments that several commands have."""

import argparse
import os
import shlex
from typing import Any

Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_config(command: argparse.ArgumentParser) -> None:
    """[CONFIG] key.path=value ..."""
    command.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="YAML file; docs/configuration.md lists every key",
    )
    command.add_argument("overrides", nargs="*", metavar="key.path=value", help="single settings")


def add_nproc(command: argparse.ArgumentParser) -> None:
    """--nproc N."""
    command.add_argument(
        "--nproc",
        type=int,
        metavar="N",
        help="start N ranks on this machine (default: one process)",
    )


def add_json(command: argparse.ArgumentParser, what: str) -> None:
    """--json OUT."""
    command.add_argument(
        "--json", metavar="OUT", type=new_file, help=f"write the {what} to this file too"
    )


def add_trust_code(command: argparse.ArgumentParser) -> None:
    """--trust-code."""
    command.add_argument(
        "--trust-code", action="store_true", help="import a backbone that the checkpoint names"
    )


def add_reader(command: argparse._ActionsContainer) -> None:
    """--under PATH and --reader KEY=VALUE."""
    command.add_argument(
        "--under",
        default="",
        metavar="PATH",
        help="only the classes below this path of a folder or tar; the split of a Parquet folder",
    )

    command.add_argument(
        "--reader",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what the format's reader is told, as data.reader: dialect=csv, label_column=fine, ...",
    )


def reader_options(options: argparse.Namespace) -> dict[str, Any]:
    """What --under and --reader ask of the reader."""
    from mpsoftmax.data.open import refuse_own
    from mpsoftmax.strict import parse_yaml

    chosen: dict[str, Any] = {"under": options.under} if options.under else {}
    for text in options.reader:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise ValueError(f"--reader: {text!r}; allowed: KEY=VALUE")
        chosen[key] = parse_yaml(value, f"--reader {text}")
    refuse_own(chosen, "--reader")
    return chosen


def reader_words(options: argparse.Namespace) -> str:
    """--under and --reader as they were given, for the next command that is named; with a space before."""
    words = ["--under", options.under] if options.under else []
    for one in options.reader:
        words += ["--reader", one]
    return f" {shlex.join(words)}" if words else ""


def new_file(text: str) -> str:
    """The path of a file that is to be written: found wanting before the work, not after it."""
    folder = os.path.dirname(text) or "."
    if os.path.isdir(text) or not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a file in a folder that exists")
    return text


def whole(text: str, least: int = 0) -> int:
    """A whole number of at least `least`."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number of at least {least}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def share(text: str) -> float:
    """A number of at least 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number of at least 0 and below 1")
    return value
