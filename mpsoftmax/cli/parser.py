"""An argument parser whose mistakes are one line, with the word that was probably meant."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser`; examples in an epilog keep their lines, and words are not abbreviated."""

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("formatter_class", Formatter)
        super().__init__(**{**arguments, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """One line and status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Of argparse: a value that is none of the choices."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"{value!r}{meant(str(value), choices)}")

    def options(self) -> list[str]:
        """The flags that this command takes."""
        return [flag for action in self._actions for flag in action.option_strings]


class Formatter(argparse.HelpFormatter):
    """Fills descriptions; keeps the lines of a text that has several."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "\n".join(f"{indent}{line}" for line in text.splitlines())


def meant(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' where X is near, else '; allowed: ...'."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(names)}"
