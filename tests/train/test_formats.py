"""The same images in every format train to the same weights, bit for bit."""

import json

import pytest

from mpsoftmax.comm import Comm
from mpsoftmax.config import load
from mpsoftmax.data.convert import convert
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.train.loop import Trainer


def train(folder, data, overrides):
    config = load(
        None, [f"run.dir={folder}", f"data.train={data}", "track.wandb=disabled", *overrides]
    )
    Trainer(config, Comm()).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


SMALL = (
    "data.image_size=[16, 16]",
    "data.augment=[{kind: flip}, {kind: erase}]",
    "backbone={name: small, embedding_dim: 16}",
    "backbone.options={widths: [8, 16], depths: [1, 1]}",
    "train.steps=4",
    "train.batch_size=10",
    "train.log_every=1",
)


@pytest.mark.slow
def test_synthetic_copies(ranks, tmp_path):
    original = Synthetic(num_classes=12, images_per_class=3, size=(20, 20))
    kinds = ("tar", "rec", "arrow", "parquet")
    copies = [tmp_path / "copy", *(tmp_path / f"copy.{kind}" for kind in kinds)]
    for copy in copies:
        convert(original, copy, number_classes=True)
    curves = [
        ranks.run(train, 2, folder=tmp_path / f"run{i}", data=copy, overrides=SMALL)[0]
        for i, copy in enumerate(copies)
    ]
    assert len(curves[0]) == 4
    assert curves[0][0]["loss"] != curves[0][1]["loss"]
    assert all(curve == curves[0] for curve in curves)


def test_face_copies(ranks, tmp_path, shared_data):
    source = shared_data / "lfw_train.tar"
    if not source.is_file():
        pytest.skip(f"needs {source.name} in ../shared/data")
    copies = [source, tmp_path / "train.rec", tmp_path / "train.arrow"]
    for copy in copies[1:]:
        convert(source, copy)
    faces = (*SMALL, "data.min_images_per_class=2", "train.steps=3", "data.image_size=[32, 32]")
    overrides = [
        item for item in faces if item not in ("train.steps=4", "data.image_size=[16, 16]")
    ]
    curves = [
        ranks.run(train, 2, folder=tmp_path / f"run{i}", data=copy, overrides=overrides)[0]
        for i, copy in enumerate(copies)
    ]
    assert len(curves[0]) == 3
    assert all(curve == curves[0] for curve in curves)
