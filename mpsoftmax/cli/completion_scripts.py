"""Completion scripts of bash, zsh and fish, written from the parser and the configuration's dataclasses.

Everything is in the script: completing starts no Python.
"""

import argparse
import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

from mpsoftmax.cli.parser import Parser
from mpsoftmax.config import Config


def script(shell: str, top: Parser) -> str:
    """The script of one shell."""
    return {"bash": bash, "zsh": zsh, "fish": fish}[shell](dict(commands(top)))


@dataclasses.dataclass(frozen=True)
class Command:
    """What can follow one command: flags, words, choices of each flag, whether keys of the configuration."""

    flags: tuple[str, ...]
    words: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]
    takes_keys: bool
    help: str


def commands(parser: Parser, path: str = "", text: str = "") -> Iterator[tuple[str, Command]]:
    """Every command by its words ("", "train", "bench head", ...)."""
    subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    named = [a for a in parser._actions if a.help != argparse.SUPPRESS]
    words = [str(c) for a in named if not a.option_strings and a.choices for c in a.choices]
    choices = {
        flag: tuple(map(str, a.choices)) for a in named if a.choices for flag in a.option_strings
    }
    flags = tuple(flag for a in named for flag in a.option_strings)
    keys = any(a.dest == "overrides" for a in named)
    yield path, Command(flags, tuple(words), choices, keys, text)
    for sub in subs:
        texts = {one.dest: one.help or "" for one in sub._choices_actions}
        for name, below in sub.choices.items():
            yield from commands(below, f"{path} {name}".strip(), texts.get(name, ""))


def config_keys(kind: type = Config, path: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """(key.path, values) of every key of the configuration; no values where they are not few."""
    hints = typing.get_type_hints(kind)
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            yield from config_keys(typing.cast(type, hint), f"{path}{one.name}.")
        else:
            yield f"{path}{one.name}", (*_values(hint), *_parts(f"{path}{one.name}"))


def _values(hint: Any) -> tuple[str, ...]:
    if hint is bool:
        return ("true", "false")
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    return tuple(value for inner in typing.get_args(hint) for value in _values(inner))


def _parts(key: str) -> tuple[str, ...]:
    """Names of parts, for keys that take one."""
    from mpsoftmax.backbones.build import backbone_names
    from mpsoftmax.data.transforms import DEFAULTS
    from mpsoftmax.head.candidates import CANDIDATES
    from mpsoftmax.head.negatives import NEGATIVES
    from mpsoftmax.head.objectives import OBJECTIVES

    named = {
        "head.objective": OBJECTIVES,
        "head.candidates": CANDIDATES,
        "head.negatives": NEGATIVES,
        "data.augment": DEFAULTS,
        "backbone.name": backbone_names(),
    }
    return tuple(named.get(key, ()))


def bash(found: dict[str, Command]) -> str:
    """For bash; words of the line select the command, then `compgen` filters what can follow."""
    cases = "\n".join(_bash_case(path, command) for path, command in found.items())
    values = "\n".join(
        f'    {key}=*) COMPREPLY=($(compgen -W "{" ".join(values)}" -- "${{1#*=}}")); return;;'
        for key, values in config_keys()
        if values
    )
    keys = " ".join(f"{key}=" for key, _ in config_keys())
    return f"""# mpsoftmax completion bash
_mpsoftmax_keys="{keys}"
_mpsoftmax() {{
  local cur prev path word
  COMPREPLY=()
  cur="${{COMP_LINE:0:COMP_POINT}}"; cur="${{cur##*[[:space:]]}}"
  prev="${{COMP_WORDS[COMP_CWORD-1]}}"
  path=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$path $word" in
{_bash_paths(found)}
    esac
  done
  case "$path" in
{cases}
  esac
}}
_mpsoftmax_config() {{
  case "$1" in
{values}
  esac
  COMPREPLY=($(compgen -W "$_mpsoftmax_keys" -- "$1") $(compgen -f -- "$1"))
  [[ "${{#COMPREPLY[@]}}" == 1 && "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
}}
complete -o default -F _mpsoftmax mpsoftmax
"""


def _bash_paths(found: dict[str, Command]) -> str:
    lines = []
    for path in found:
        before, _, last = path.rpartition(" ")
        if path:
            lines.append(f'      "{before} {last}") path="{path}";;')
    return "\n".join(lines)


def _bash_case(path: str, command: Command) -> str:
    lines = [f'    "{path}")']
    if command.choices:
        lines.append('      case "$prev" in')
        lines += [
            f'        {flag}) COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$cur")); return;;'
            for flag, values in command.choices.items()
        ]
        lines.append("      esac")
    flags, words = " ".join(command.flags), " ".join(command.words)
    lines.append(
        f'      if [[ "$cur" == -* ]]; then COMPREPLY=($(compgen -W "{flags}" -- "$cur")); return; fi'
    )
    if words:
        lines.append(f'      COMPREPLY=($(compgen -W "{words}" -- "$cur"));;')
    elif command.takes_keys:
        lines.append('      _mpsoftmax_config "$cur";;')
    else:
        lines.append("      ;;")
    return "\n".join(lines)


def zsh(found: dict[str, Command]) -> str:
    """For zsh: the bash script through zsh's own emulation of its completion."""
    return f"""#compdef mpsoftmax
autoload -U +X bashcompinit && bashcompinit
{bash(found)}"""


def fish(found: dict[str, Command]) -> str:
    """For fish: a line a word, with the condition under which it may come."""
    lines = ["# mpsoftmax completion fish", "complete -c mpsoftmax -f"]
    for path, command in found.items():
        chosen = path.split()
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in chosen)
        below = (
            f"; and not __fish_seen_subcommand_from {' '.join(command.words)}"
            if command.words
            else ""
        )
        when = (seen + below).removeprefix("; and ") or "true"
        for word in command.words:
            text = found.get(f"{path} {word}".strip())
            lines.append(_fish_line(when, f"-a {word}", text.help if text else ""))
        for flag in command.flags:
            if flag.startswith("--"):
                values = command.choices.get(flag, ())
                given = f" -x -a '{' '.join(values)}'" if values else ""
                lines.append(_fish_line(seen or "true", f"-l {flag[2:]}{given}"))
        if command.takes_keys:
            lines.append(_fish_line(seen, "-F"))
            for key, values in config_keys():
                words = " ".join(f"{key}={value}" for value in values) or f"{key}="
                lines.append(_fish_line(seen, f"-a '{words}'"))
    return "\n".join(lines) + "\n"


def _fish_line(when: str, what: str, text: str = "") -> str:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    described = f" -d '{quoted}'" if text else ""
    return f"complete -c mpsoftmax -n '{when}' {what}{described}"
