"""Help of every command, and docs/commands.md: both say everything."""

import argparse
import re
from pathlib import Path

import pytest

from mpsoftmax.cli import COMMANDS, main, parser

PAGE = Path(__file__).resolve().parents[2] / "docs/commands.md"


def parsers(one, words=()):
    """Every command's words and parser."""
    yield words, one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from parsers(below, (*words, name))


ALL = list(parsers(parser()))


@pytest.mark.parametrize("words", [words for words, _ in ALL], ids=[" ".join(w) for w, _ in ALL])
def test_help_teaches(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) > 5
    assert re.search("examples?:", said)
    if len(words) < 2:
        assert "exit status" in said
    for name in words[:1]:
        assert f"mpsoftmax {name}" in said.partition("example")[2]


def test_the_page_has_every_command_and_option():
    text = PAGE.read_text()
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    names = [words[0] for words, _ in ALL if len(words) == 1]
    assert list(sections) == names
    assert len(names) == len(COMMANDS)
    for words, one in ALL:
        if words:
            section = sections[words[0]]
            assert f"`{words[0]} {words[1]}`" in section if len(words) > 1 else True
            for action in one._actions:
                shown = action.help != argparse.SUPPRESS and action.dest not in ("help", "what")
                for flag in action.option_strings if shown else ():
                    assert f"`{flag}`" in section, (words, flag)


def test_the_page_has_no_other_option():
    known = {flag for _, one in ALL for flag in one.options()}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE.read_text())) - known == set()


def test_examples_of_the_page_are_understood():
    from mpsoftmax.cli import parsed

    lines = re.findall(r"^    mpsoftmax (.*)$", PAGE.read_text(), re.M)
    assert len(lines) >= len(COMMANDS)
    for line in lines:
        options = parsed(line.partition(" > ")[0].replace("'", "").split())
        assert options.command == line.split()[0]
