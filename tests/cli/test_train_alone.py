"""`mpsoftmax train data.train=PATH` and `--dry-run`, in-process."""

import json
import re
import shutil
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image

from mpsoftmax.cli import main
from mpsoftmax.data.contact_sheet import contact_sheet
from mpsoftmax.data.convert import convert
from mpsoftmax.data.synthetic import Synthetic


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = Synthetic(num_classes=60, images_per_class=4, size=(24, 24))
    convert(images, "marks.tar", number_classes=True)
    (tmp_path / "animated.gif").write_bytes(b"GIF89a")
    with tarfile.open("marks.tar", "a") as archive:
        archive.add("animated.gif", "0001/animated.gif")
        archive.add("animated.gif", "notes.png")
    return tmp_path


QUICK = ("train.steps=4", "data.workers=0", "track.wandb=disabled", "backbone.embedding_dim=16")


def test_the_data_alone_are_enough_and_a_run_goes_on_with_its_settings(data, capsys):
    narrow = "backbone.options={widths: [8, 16], depths: [1, 1]}"
    assert main(["train", "data.train=marks.tar", *QUICK, narrow]) == 0
    said = capsys.readouterr().out
    assert "settings chosen from the data" in said
    assert "data.held_back" in said
    reasons = "1 not an image by its suffix, 1 outside any class folder"
    assert f"data.train: 2 not used ({reasons}); mpsoftmax inspect shows some" in said
    assert "next: mpsoftmax evaluate runs/marks --data held-back" in said
    run = data / "runs/marks"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["image_size"] == [32, 32]
    assert (config["data"]["held_back"], config["data"]["eval"]) == (10, ["held-back"])
    assert config["backbone"]["name"] == "small"
    assert config["train"]["batch_size"] == 30  # an eighth of 240 images
    assert main(["train", "data.train=marks.tar", "train.steps=6"]) == 0
    said = capsys.readouterr().out
    assert "settings of runs/marks/config.yaml" in said
    assert "resuming from" in said
    again = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["steps"] = 6
    assert again == config
    (data / "other").mkdir()
    shutil.copy(data / "marks.tar", data / "other/marks.tar")
    assert main(["train", "data.train=other/marks.tar", "train.steps=6"]) == 2
    assert re.search(
        r"run\.dir: runs/marks, .* holds a run on .*/marks\.tar; .* on .*/other/marks\.tar",
        capsys.readouterr().err,
    )
    assert main(["train", "data.train=other/marks.tar", "train.steps=6", "run.dir=runs/marks"]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {one["set"] for one in lines if "set" in one} == {"held-back"}
    assert main(["evaluate", "runs/marks", "--data", "held-back"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_dry_run(data, capsys):
    assert main(["train", "data.train=marks.tar", *QUICK, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in (
        "settings chosen",
        "image_size:",
        "Memory of the fullest rank",
        "4 steps of",
        "nothing was",
    ):
        assert part in said
    assert [path.name for path in (data / "runs/marks").iterdir()] == ["first-batch.png"]
    with Image.open(data / "runs/marks/first-batch.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 10
    (data / "a.yaml").write_text("data: {train: marks.tar, workers: 0, image_size: [32, 32]}\n")
    here = ["--dry-run", "--picture", "b.png", "train.epochs=3", "backbone.name=small"]
    assert main(["train", "a.yaml", *here]) == 0
    assert "6 steps of 128" in capsys.readouterr().out  # three times 240 images
    assert (data / "b.png").stat().st_size > 1000
    assert not (data / "runs/default").exists()


def test_a_contact_sheet_shows_each_image_where_it_belongs():
    """Colours read back from the picture; small images are enlarged by a whole factor."""
    images = np.zeros((5, 3, 16, 16), np.uint8)
    images[:, 0] = (np.arange(5) * 50)[:, None, None]
    images[:, 2] = 7
    sheet = contact_sheet(images, [f"class {k}" for k in range(4)] + ["汉" * 50])
    pixels = np.asarray(sheet)
    found = {tuple(c) for c in pixels.reshape(-1, 3).tolist() if c[1] == 0 and c[2] == 7}
    assert found == {(50 * k, 0, 7) for k in range(5)}
    for k in range(5):
        assert (pixels == [50 * k, 0, 7]).all(2).sum() == 112 * 112
    assert contact_sheet(np.zeros((100, 3, 8, 8), np.uint8), ["x"] * 100).height < 8 * 140
