"""Settings chosen from the data alone."""

import numpy as np
import pytest
from given_images import GivenImages
from PIL import Image

from mpsoftmax.config import from_tree, to_tree
from mpsoftmax.data.convert import convert
from mpsoftmax.data.image_set import encoded
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.train.build import check_parts
from mpsoftmax.train.data_facts import Facts, look, median_size
from mpsoftmax.train.defaults import (
    Choice,
    backbone,
    choose,
    filled_in,
    is_given,
    network_size,
    render,
    with_value,
)
from mpsoftmax.train.settings import settings_of


def facts(**changed):
    usual = {
        "name": "faces",
        "source": "files",
        "num_datasets": 1,
        "class_sizes": np.full(1000, 20),
        "image_size": (112, 112),
        "row_groups": False,
        "gpu": True,
        "cores": 8,
        "world": 2,
    }
    return Facts(**{**usual, "local_world": changed.get("world", 2), **changed})


def chosen(given=None, **changed):
    return {one.key: one.value for one in choose(facts(**changed), given or {})}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((112, 112), (112, 112)),
        ((250, 250), (112, 112)),
        ((32, 32), (32, 32)),
        ((28, 28), (32, 32)),
        ((100, 90), (96, 96)),  # nearly square
        ((480, 640), (80, 112)),
        ((128, 48), (128, 48)),
        ((256, 128), (256, 128)),
        ((1024, 512), (256, 128)),
        ((20, 300), (32, 112)),
    ],
)
def test_the_network_s_image_size(size, expected):
    assert network_size(*size) == expected


def test_a_set_of_faces():
    values = chosen()
    assert values["run.dir"] == "runs/faces"
    assert values["data.image_size"] == [112, 112]
    assert (values["data.held_back"], values["data.eval"]) == (50, ["held-back"])
    assert (values["data.augment"], values["data.workers"]) == ("face", 4)
    assert (values["backbone.name"], values["backbone.embedding_dim"]) == ("iresnet18", 256)
    assert (values["train.batch_size"], values["train.epochs"]) == (128, 40)
    assert values["train.eval_every"] == 40 * 20_000 // 128 // 10
    assert not {"head.candidates", "data.order", "data.min_images_per_class"} & values.keys()


@pytest.mark.parametrize(
    ("num", "longest", "gpu", "name"),
    [
        (10**4, 32, True, "small"),
        (10**4, 112, True, "mobilefacenet"),
        (10**5, 112, True, "iresnet18"),
        (10**6, 112, True, "iresnet34"),
        (5 * 10**6, 112, True, "iresnet50"),
        (4 * 10**7, 112, True, "iresnet100"),
        (4 * 10**7, 112, False, "mobilefacenet"),
        (10**6, 48, False, "small"),
    ],
)
def test_the_backbone_goes_with_the_data(num, longest, gpu, name):
    assert backbone(num, longest, gpu)[0] == name


def test_other_kinds_of_data():
    tall = chosen(image_size=(256, 128))
    assert (tall["data.augment"], tall["data.image_size"]) == ("reid", [256, 128])
    glyphs = chosen(source="glyphs", image_size=(32, 32))
    assert (glyphs["data.augment"], glyphs["data.eval"]) == ("glyph", ["glyphs-open"])
    assert "data.held_back" not in glyphs
    assert chosen(row_groups=True)["data.order"] == "grouped"
    singles = np.array([1] * 500 + [3] * 400)
    assert chosen(class_sizes=singles)["data.min_images_per_class"] == 2
    assert chosen(class_sizes=singles)["data.held_back"] == 20
    assert chosen(class_sizes=singles[500:])["train.batch_size"] == 128
    lone = np.array([1] * 10_000 + [2] * 100)  # of which 200 images are left
    assert chosen(class_sizes=lone)["train.batch_size"] == 25
    few = chosen(class_sizes=np.full(49, 9))
    assert not {"data.held_back", "data.eval"} & few.keys()
    assert "data.eval" not in chosen(num_datasets=2)
    many = chosen(class_sizes=np.full(4_000_000, 5))
    assert many["head.candidates"] == {"kind": "uniform", "rate": 0.1}
    assert many["head.objective"] == {"kind": "cosface", "scale": 64, "margin": 0.35}
    assert chosen(class_sizes=np.full(10, 2), world=3)["train.batch_size"] == 16
    assert chosen(class_sizes=np.full(10, 2), world=40)["train.batch_size"] == 40


GIVEN = [
    {"data": {"image_size": [64, 64], "augment": "none", "eval": []}},
    {"data": {"held_back": 5, "eval": ["held-back"]}, "train": {"steps": 7}},
    {"train": {"epochs": 3, "batch_size": 8, "schedule": {"kind": "constant"}}},
    {"head": {"objective": "arcface", "candidates": "all"}, "backbone": {"name": "small"}},
    {"run": {"dir": "elsewhere"}, "train": {"clip_norm": None}},
]


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_given_stays(given):
    sizes = np.full(2_000_000, 2)
    tree = filled_in(given, choose(facts(class_sizes=sizes), given))

    def check(part, whole):
        for key, value in part.items():
            if isinstance(value, dict):
                check(value, whole[key])
            else:
                assert whole[key] == value, key

    check(given, tree)
    length = given.get("train", {})
    assert ("epochs" in tree["train"]) == ("steps" not in length)
    check_parts(from_tree(tree))


def test_a_choice_follows_what_was_given():
    assert chosen({"train": {"steps": 50}})["train.eval_every"] == 50
    assert chosen({"data": {"image_size": [32, 32]}}, gpu=False)["backbone.name"] == "small"
    assert "data.eval" not in chosen({"data": {"held_back": 5}})


def test_one_field_given_leaves_the_others_chosen():
    values = chosen({"train": {"schedule": {"warmup": 0.05}}})
    assert values["train.schedule.kind"] == "cosine"
    assert "train.schedule.warmup" not in values
    assert chosen({"train": {"schedule": {"milestones": [9]}}})["train.schedule.kind"] == "step"
    assert chosen({"train": {"schedule": {"power": 1}}})["train.schedule.kind"] == "polynomial"
    values = chosen({"head": {"objective": {"margin": 0.3}}})
    assert values["head.objective.kind"] == "cosface"
    assert values["head.objective.scale"] == 32
    assert not {"head.objective", "head.objective.margin"} & values.keys()
    assert not [
        key for key in chosen({"head": {"objective": {"kind": "arcface"}}}) if "objective" in key
    ]
    many = np.full(4_000_000, 5)
    values = chosen({"head": {"candidates": {"rate": 0.02}}}, class_sizes=many)
    assert values["head.candidates.kind"] == "uniform"


def test_trees():
    tree = {"a": {"b": 1}, "c": "name"}
    assert [is_given(tree, key) for key in ("a.b", "a.x", "x", "c.kind")] == [
        True,
        False,
        False,
        True,
    ]
    assert with_value(tree, "a.d.e", 2) == {"a": {"b": 1, "d": {"e": 2}}, "c": "name"}
    assert tree == {"a": {"b": 1}, "c": "name"}
    text = render([Choice("a.b", [1, 2], "why"), Choice("long.key", {"kind": "x"}, "so")])
    assert text.splitlines()[1:] == ["  a.b       [1, 2]     why", "  long.key  {kind: x}  so"]


def test_the_median_size_leaves_out_what_is_no_image():
    def png(h, w):
        return encoded(np.zeros((h, w, 3), np.uint8))

    images = GivenImages([png(9, 5), b"no image", png(11, 7), png(30, 8)], [0] * 4, ["x"])
    assert median_size(images) == (11, 7)
    with pytest.raises(
        ValueError, match="none of 2 images looked at is an image, such as sample 0"
    ):
        median_size(GivenImages([b"", b"x"], [0, 0], ["x"]))


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(Synthetic(num_classes=60, images_per_class=4, size=(24, 24)), "marks.parquet")


def test_facts_of_real_files(data, tmp_path):
    found = look({"data": {"train": "marks.parquet"}}, world=3)
    assert (found.name, found.source, found.world, found.row_groups) == ("marks", "files", 3, True)
    assert found.image_size == (24, 24)
    assert found.class_sizes.tolist() == [4] * 60
    assert (
        look(
            {"data": {"train": "./marks.parquet", "held_back": 9, "eval": ["held-back"]}}, 1
        ).class_sizes.sum()
        == 51 * 4
    )


def test_settings_come_from_the_data_and_then_from_the_run(data, tmp_path):
    config, said = settings_of(None, ["data.train=marks.parquet", "train.epochs=2"], 1)
    assert config.run.dir == "runs/marks"
    assert config.data.order == "grouped"
    assert "data.order" in said
    assert "Parquet is read by row groups" in said
    assert "train.epochs" not in said
    assert from_tree(to_tree(config)) == config
    changed = {**to_tree(config), "data": {**to_tree(config)["data"], "image_size": [48, 48]}}
    (tmp_path / "runs/marks").mkdir(parents=True)
    import yaml

    (tmp_path / "runs/marks/config.yaml").write_text(yaml.safe_dump(changed))
    again, said = settings_of(None, ["data.train=marks.parquet", "train.steps=9"], 1)
    assert again.data.image_size == (48, 48)
    assert (again.train.steps, again.train.epochs) == (9, None)
    assert said == "settings of runs/marks/config.yaml, the run found there"


def test_single_fields_of_parts_without_a_file(data):
    given = ["data.train=marks.parquet", "train.schedule.warmup=0.05", "head.optimizer.lr=0.3"]
    config, said = settings_of(None, [*given, "head.objective.margin=0.3"], 1)
    check_parts(config)
    assert (config.train.schedule.kind, config.train.schedule.warmup) == ("cosine", 0.05)
    assert config.head.objective == {"kind": "cosface", "scale": 32, "margin": 0.3}
    assert config.head.optimizer == {"kind": "sgd", "lr": 0.3}
    assert "train.schedule.kind" in said
    config, _ = settings_of(None, [*given, "head.objective.margn=3"], 1)
    with pytest.raises(ValueError, match=r"objective\.margn: unknown key; did you mean 'margin'"):
        check_parts(config)


def test_a_file_s_settings_are_taken_as_they_are(data, tmp_path):
    (tmp_path / "a.yaml").write_text("data: {train: marks.parquet}\ntrain: {steps: 5}\n")
    config, said = settings_of("a.yaml", ["train.batch_size=4"], 1)
    assert said == ""
    assert to_tree(config) == to_tree(
        from_tree({"data": {"train": "marks.parquet"}, "train": {"steps": 5, "batch_size": 4}})
    )


def test_image_size_of_a_folder_with_odd_files(tmp_path):
    for k in range(3):
        (tmp_path / "set" / str(k)).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (40, 90)).save(tmp_path / "set" / str(k) / f"{j}.png")
    (tmp_path / "set/0/broken.jpg").write_bytes(b"x")
    found = look({"data": {"train": str(tmp_path / "set")}}, 1)
    assert found.image_size == (90, 40)


def test_ranks_of_other_machines_do_not_share_the_cores():
    assert chosen(cores=32, world=64, local_world=8)["data.workers"] == 4
