"""Every command in README and docs is one that the command line takes, with keys and files that exist."""

import re
import shlex
from pathlib import Path

import pytest
from documents import ROOT, Command, commands

from mpsoftmax.cli import parsed
from mpsoftmax.config import load
from mpsoftmax.train.build import check_parts

PLACEHOLDERS = {
    "CONFIG": "configs/quickstart.yaml",
    "CONFIG.yaml": "configs/quickstart.yaml",
    "N": "2",
}
ALL = commands()
OURS = [c for c in ALL if "mpsoftmax " in f"{c.text} " and not c.text.startswith(("pip", "docker"))]
SCRIPTS = [c for c in ALL if re.search(r"(^|\s)(launch|benchmarks|examples|docker|tests)/", c.text)]


def test_there_are_commands():
    assert len(OURS) > 40
    assert len(SCRIPTS) > 10


def words(command: Command) -> list[str]:
    """Arguments of mpsoftmax: no brackets around what may be left out, no ellipsis, no placeholder."""
    text = re.sub(r" \[(--\S+(?: [A-Z]\S*)?|key\S+ \.\.\.|PATH|sizes)\]", r" \1", command.text)
    found = shlex.split(text)
    start = max(i for i, word in enumerate(found) if word.rsplit("/")[-1] == "mpsoftmax")
    left_out = ("...", "key.path=value", "sizes")
    found = [word.removesuffix("=S") + "=0" if word.endswith("=S") else word for word in found]
    return [PLACEHOLDERS.get(word, word) for word in found[start + 1 :] if word not in left_out]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_is_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ds_config.json").write_text("{}")
    given = words(command)
    if not given:
        return
    options = parsed(given)
    config = getattr(options, "config", None)
    if options.command not in ("train", "plan", "doctor") or config is None:
        return
    if config.startswith("configs/") and "my_" not in command.text:  # a file of the user's
        check_parts(load(str(ROOT / config), options.overrides))


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_the_files_of_a_command_exist(command):
    folders = "launch|benchmarks|examples|docker|tests|configs"
    for path in re.findall(rf"(?<!\S)((?:{folders})/[\w./]+)", command.text):
        assert (ROOT / path).exists(), path


def test_the_tutorial_s_gpu_run_is_what_the_shipped_config_trains():
    line = next(c.text for c in ALL if c.page == "docs/tutorial_faces.md" and "torchrun" in c.text)
    told = load(None, [word for word in shlex.split(line) if "=" in word])
    shipped = load(ROOT / "configs" / "faces_r50.yaml")
    assert told.head.objective == shipped.head.objective["kind"] == "arcface"
    assert told.backbone.name == shipped.backbone.name
    assert told.train.batch_size == shipped.train.batch_size
    assert told.train.epochs == shipped.train.epochs
