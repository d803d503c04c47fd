"""Completion as the shell does it: the script is sourced in a real bash and asked."""

import shutil
import subprocess

import pytest

from mpsoftmax.cli import COMMANDS, main, parser
from mpsoftmax.cli.completion_scripts import commands, config_keys, script


def test_every_command_option_and_key_is_in_every_script():
    found = dict(commands(parser()))
    assert len([path for path in found if path and " " not in path]) == len(COMMANDS)
    for shell in ("bash", "zsh", "fish"):
        text = script(shell, parser())
        for command in found.values():
            for flag in command.flags:
                assert (flag if shell != "fish" or flag == "-h" else f"-l {flag[2:]}") in text or (
                    shell == "fish" and flag == "-h"
                )
        assert ("run\\'s" in text) == (shell == "fish")  # a quote within quotes
        for key, values in config_keys():
            assert f"{key}=" in text
            for value in values:
                assert value in text


def completed(line):
    words = line.split(" ")
    code = f"""
source /dev/stdin
COMP_LINE={line!r}; COMP_POINT={len(line)}
COMP_WORDS=({" ".join(repr(w.partition("=")[0]) if w else "''" for w in words)}); COMP_CWORD={len(words) - 1}
compopt() {{ :; }}
_mpsoftmax; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    bash = [shutil.which("bash"), "--norc", "-c", code]
    run = subprocess.run(bash, input=script("bash", parser()), capture_output=True, text=True)
    assert run.stderr == ""
    return run.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mpsoftmax tr", ["train"]),
        ("mpsoftmax bench lo", ["loader"]),
        ("mpsoftmax train --dry", ["--dry-run"]),
        ("mpsoftmax train a.yaml --np", ["--nproc"]),
        ("mpsoftmax convert a b --style im", ["im2rec"]),
        ("mpsoftmax completion f", ["fish"]),
        ("mpsoftmax train data.held", ["data.held_back="]),
        ("mpsoftmax train data.order=c", ["classes"]),
        ("mpsoftmax train head.objective=arc", ["arcface"]),
        ("mpsoftmax train train.checkpoint_async=", ["true", "false"]),
        ("mpsoftmax train backbone.name=iresnet1", ["iresnet18", "iresnet100"]),
        ("mpsoftmax inspect data.ord", []),
    ],
)
def test_bash_completes(line, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert completed(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_it(capsys, shell):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert said == script(shell, parser())
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=said, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
