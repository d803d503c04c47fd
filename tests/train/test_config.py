"""The strict loader: what is accepted, and the message for what is not."""

import dataclasses
import re
import typing

import pytest
import torch

from mpsoftmax.config import BasketsConfig, Config, apply_override, from_tree, load, to_yaml
from mpsoftmax.config.loading import DEFAULT_KINDS
from mpsoftmax.train.build import changed_settings, check_parts, local_capacity
from mpsoftmax.train.parts import build_candidates, build_objective, build_row_rule


def config(*overrides: str) -> Config:
    return load(None, ["train.steps=10", *overrides])


def test_round_trip(tmp_path):
    path = tmp_path / "run.yaml"
    original = config("head.objective={kind: cosface, margin: 0.3}", "data.eval=[a.bin, b.bin]")
    path.write_text(to_yaml(original))
    assert load(path) == original


def test_overrides_reach_into_named_parts():
    tree = {"head": {"objective": "cosface"}}
    apply_override(tree, "head.objective.margin=0.35")
    assert tree == {"head": {"objective": {"kind": "cosface", "margin": 0.35}}}
    assert (
        build_objective(config("head.objective=cosface", "head.objective.margin=0.35")).margin
        == 0.35
    )


def test_a_part_that_is_not_there_begins_as_its_default(tmp_path):
    assert config("head.objective.margin=0.3").head.objective == {"kind": "arcface", "margin": 0.3}
    assert build_row_rule(config("head.optimizer.lr=0.2")).lr == 0.2
    (tmp_path / "a.yaml").write_text("train: {steps: 1}\nhead: {objective: cosface}\n")
    kept = load(tmp_path / "a.yaml", ["head.objective.margin=0.3"])
    assert kept.head.objective == {"kind": "cosface", "margin": 0.3}


def test_every_named_part_has_its_default_kind():
    """DEFAULT_KINDS says what the sections say, and leaves no `str | dict` field out."""

    def named(section, path=""):
        for one in dataclasses.fields(section):
            value, where = getattr(section, one.name), f"{path}{one.name}"
            if dataclasses.is_dataclass(value):
                yield from named(value, f"{where}.")
            elif typing.get_type_hints(type(section))[one.name] in PARTS:
                yield where, value or "sgd"

    PARTS = (str | dict[str, typing.Any], str | dict[str, typing.Any] | None)
    found = dict(named(config()))
    rules = {f"head.baskets.{key}": kind for key, kind in named(BasketsConfig())}
    assert {**found, **rules} == DEFAULT_KINDS


def test_exponents_without_a_point_are_numbers():
    assert config("train.optimizer.lr=1e-3").train.optimizer.lr == 1e-3


def test_a_lone_evaluation_set_is_a_list_of_one():
    assert config("data.eval=lfw.bin").data.eval == ("lfw.bin",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=5", "trian: unknown key; did you mean 'train'?"),
        ("train.stpes=5", "train.stpes: unknown key; did you mean 'steps'?"),
        ("train.steps=ten", "train.steps: 'ten'; allowed: a whole number"),
        ("train.steps=1.5", "train.steps: 1.5; allowed: a whole number"),
        ("train.steps=true", "train.steps: True; allowed: a whole number"),
        ("train.steps=0", "train.steps: 0; allowed: at least 1"),
        ("train.epochs=3", "train.steps: 10 and train.epochs: 3.0; allowed: exactly one"),
        (
            "train.precision=fp321",
            "train.precision: 'fp321'; allowed: auto, bf16, fp16, fp32; did you mean 'fp32'?",
        ),
        ("data.image_size=[112]", "data.image_size: 1 items; allowed: 2"),
        ("data.image_size=112", "data.image_size: 112; allowed: a list"),
        ("data.workers=-1", "data.workers: -1; allowed: at least 0"),
        ("train.optimizer.lr=-1", "train.optimizer.lr: -1.0; allowed: a positive number"),
        ("train.optimizer.lr=.nan", "train.optimizer.lr: nan; allowed: a positive number"),
        ("train.schedule.milestones=[5]", "train.schedule.milestones: (5,); allowed only with"),
        ("train.schedule.kind=step", "train.schedule.milestones: empty"),
        ("train.accumulation=1000", "train.accumulation: 1000; allowed: at most train.batch_size"),
        ("data.order=pk", None),
        ("steps", "override 'steps'; allowed: key.path=value"),
        ("train.steps.more=1", "override 'train.steps.more=1': steps is 10"),
        ("train.seed=[1", "not valid YAML"),
    ],
)
def test_refusals(override, message):
    if message is None:
        override, message = "data.order=pk", "data.images_per_class=5"
        with pytest.raises(ValueError, match=message):
            config(override, "data.images_per_class=5")
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        config(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head.objective=arcfase", "head.objective: kind 'arcfase'; did you mean 'arcface'?"),
        ("head.objective={kind: arcface, margn: 1}", "head.objective.margn: unknown key; did you"),
        ("head.objective.margn=3", "head.objective.margn: unknown key; did you mean 'margin'?"),
        (
            "head.objective.m2=3",
            "head.objective.m2: unknown key of kind 'arcface'; allowed with head",
        ),
        (
            "head.candidates.rate=0.1",
            "head.candidates.rate: unknown key of kind 'all'; allowed with head.candidates=uniform or",
        ),
        (
            "head.candidates.x=1",
            "head.candidates.x: unknown key; allowed: no field with kind 'all'",
        ),
        ("head.objective={kind: arcface, margin: 9}", "head.objective: ArcFace.margin: 9.0"),
        ("head.candidates={kind: uniform, rate: 2}", "head.candidates: Uniform.rate: 2.0"),
        ("head.optimizer={kind: sgd, eps: 1}", "head.optimizer.eps: unknown key of kind 'sgd'"),
        ("data.augment=fase", "data.augment: 'fase'; did you mean 'face'?"),
        ("backbone.name=iresnet51", "iresnet51"),
    ],
)
def test_parts_are_refused_before_anything_starts(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_parts(config(override))


def test_parts_are_built_from_names_and_mappings():
    chosen = config(
        "head.objective={kind: combined, m1: 1, m2: 0.1, m3: 0.2}",
        "head.candidates=uniform",
        "head.optimizer=adamw",
        "train.optimizer.lr=0.01",
    )
    assert (build_objective(chosen).m2, build_candidates(chosen).rate) == (0.1, 0.1)
    assert build_row_rule(chosen).lr == 0.01


def test_every_rank_needs_a_sample():
    chosen = config("train.batch_size=7", "train.accumulation=2")
    assert local_capacity(chosen, 2) == 2
    with pytest.raises(ValueError, match="at least 8"):
        local_capacity(chosen, 4)


def test_unreadable_files(tmp_path):
    for name, text in (
        ("a.yaml", "- 1"),
        ("b.yaml", "a: [1"),
        ("c.yaml", "!!python/object:os.x {}"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            load(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_changed_settings_name_their_paths():
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}
    assert changed_settings(old, new) == ["a.c: 2 -> 3"]


def test_empty_sections_take_the_defaults():
    assert from_tree({"train": {"steps": 1}, "data": None}).data.train == "glyphs"
    assert torch.Size(from_tree({"train": {"steps": 1}}).data.image_size) == (112, 112)
