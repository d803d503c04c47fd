"""docs/migration.md: its commands, in their order, on a small training as arcface_torch leaves it."""

import re
import shlex
from pathlib import Path

import arcface_files
import pytest
import torch
import yaml
from small_runs import BASE, settings

from mpsoftmax.cli import main
from mpsoftmax.config import to_yaml

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text()
SMALL = ["data.workers=0", "data.synthetic.images_per_class=4", "train.steps=16"]


def commands():
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.M | re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """old/, configs/, backbone.pth, reviewed.csv, grown.yaml: what the page's reader has."""
    folder = tmp_path_factory.mktemp("page")
    arcface_files.write_checkpoints(folder / "old", world=3)
    arcface_files.write_config(folder / "configs")
    torch.save(arcface_files.net().state_dict(), folder / "backbone.pth")
    (folder / "reviewed.csv").write_text("old,new\nclass-000001,class-000000\nclass-000002,\n")
    net = [item for item in BASE if not item.startswith("backbone")]
    tree = yaml.safe_load(to_yaml(settings(folder / "unused", *net)))
    tree["backbone"] = {
        "name": "mobilefacenet", "embedding_dim": 16, "options": arcface_files.SMALL,
    }  # fmt: skip
    tree["data"]["synthetic"]["num_classes"] = 25
    tree["train"]["steps"] = 2
    (folder / "grown.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_every_command_of_the_page(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    given = commands()
    assert len(given) == 7
    for number, command in enumerate(given):
        more = SMALL if command[:2] == ["convert", "old"] else []
        more = [f"run.dir=run{number}"] if command[:2] == ["train", "grown.yaml"] else more
        assert main([*command, *more]) == 0, (command, capsys.readouterr().err)
        told = capsys.readouterr().out
        if "head.new_rows=class_mean" in command:
            assert "23 classes by name, from 23 rows; 0 old classes left" in told
            assert "of 2 new classes 2 begin as their mean" in told
        if "head.renamed=reviewed.csv" in command:
            assert "21 classes by name, from 22 rows; 1 old classes left" in told
    made = {path.name for path in place.iterdir()}
    assert {"ours.yaml", "MODEL", "RUN", "back"} <= made
    assert sorted(path.name for path in (place / "back").iterdir()) == [
        *(f"checkpoint_gpu_{rank}.pt" for rank in range(4)),
        "model.pt",
    ]


def test_the_error_that_the_page_quotes(place, tmp_path, capsys):
    old = tmp_path / "old"
    old.mkdir()
    for rank in (0, 1):
        name = f"checkpoint_gpu_{rank}.pt"
        (old / name).write_bytes((place / "old" / name).read_bytes())
    config = str(place / "configs" / "small_mbf.py")
    assert main(["convert", str(old), str(tmp_path / "run"), "--config", config]) == 2
    told = capsys.readouterr().err
    quoted = re.search(r"`(2 shards hold.*?files\))`", PAGE, re.S)
    assert quoted is not None
    assert " ".join(quoted[1].split()) in told


def test_every_key_of_base_is_on_the_page():
    keys = {
        line.split(".")[1].split(" =")[0]
        for line in (arcface_files.BASE + arcface_files.CONFIG).splitlines()
        if line.startswith("config.")
    }
    named = set(re.findall(r"\w+", PAGE))
    assert keys <= named


def test_the_loop_of_the_page_runs():
    """The python block as it stands, around names that a training loop has."""
    block = re.search(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert block is not None
    torch.manual_seed(0)
    backbone = torch.nn.Linear(4, 512)
    names = {"torch": torch, "num_classes": 50, "backbone": backbone}
    names["local_embeddings"] = backbone(torch.randn(6, 4))
    names["local_labels"] = torch.arange(6)
    before = backbone.weight.detach().clone()
    exec(block[1], names)
    assert not torch.equal(backbone.weight, before)
    rows = names["module_partial_fc"].head.state_dict()
    assert int((rows["row_step"] > 0).sum()) == 10  # 0.2 of 50 classes were in the step
