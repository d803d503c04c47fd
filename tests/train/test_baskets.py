"""Whole runs on several datasets: resuming, duplicates, linking."""

import json

import pytest
from small_runs import assert_equal_states, lines, losses, settings, train

from mpsoftmax.comm import Comm
from mpsoftmax.train.centres import PASS_BATCH
from mpsoftmax.train.loop import Trainer

PARTS = "data.train=[{path: synthetic, part: 1/2, margin: 0.2}, {path: synthetic, part: 2/2}]"
UNEQUAL = (
    "data.train=[{path: synthetic, part: 1/4, weight: 2}, {path: synthetic, part: 2/3, weight: 5}]",
    "data.synthetic.images_per_class=9",
)
EVERY = "train.checkpoint_every=3"
LEARNS = ("train.steps=40", "train.optimizer.lr=0.05")
LINKS = "head.linking={every: 4, threshold: 0.2, doubt: 0.5, lead: 0, stable: 2}"


@pytest.mark.parametrize(
    "overrides",
    [
        (PARTS, "head.baskets={warmup: 4, duplicates: null}"),
        (
            *UNEQUAL,
            "data.order=classes",
            "train.accumulation=2",
            "head.baskets.rule=target_relative",
        ),
        (*UNEQUAL, "head.baskets.rule={kind: hardest, num: 4}", "data.workers=1"),
        (PARTS, "head.candidates={kind: uniform, rate: 0.5}", "head.untouched=lazy"),
    ],
    ids=["margins-warmup", "unequal-classes", "hardest-workers", "sampled-lazy"],
)
def test_resuming_is_bit_identical(ranks, tmp_path, overrides):
    for folder, stop_after in (("a", None), ("b", 5), ("b", None)):
        ranks.run(
            train, 2, folder=tmp_path / folder, overrides=(*overrides, EVERY), stop_after=stop_after
        )
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")
    assert len(losses(tmp_path / "a")) == 10


def test_another_world_size_goes_on_with_the_same_samples(ranks, tmp_path):
    overrides = (*UNEQUAL, EVERY, "head.baskets.duplicates=null")
    ranks.run(train, 2, folder=tmp_path / "whole", overrides=overrides)
    ranks.run(train, 2, folder=tmp_path / "parts", overrides=overrides, stop_after=5)
    ranks.run(train, 3, folder=tmp_path / "parts", overrides=overrides)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-5)


def test_statistics_of_each_dataset_are_logged(ranks, tmp_path):
    ranks.run(train, 2, folder=tmp_path, overrides=(PARTS,))
    line = lines(tmp_path)[-1]
    assert {"rejected_share", "rejected_share_0", "rejected_share_1"} <= line.keys()


def opening(folder, overrides):
    try:
        Trainer(settings(folder, *overrides), Comm()).log.close()
    except ValueError as error:
        return str(error)
    return None


def test_a_checkpoint_of_other_datasets_is_refused(ranks, tmp_path):
    ranks.run(train, 1, folder=tmp_path, overrides=(PARTS, "train.steps=2"))
    same_classes = "data.train=[{path: synthetic, part: 1/4}, {path: synthetic, part: 2/2}]"
    (message,) = ranks.run(opening, 1, folder=tmp_path, overrides=(same_classes,))
    assert "allowed: the same images in the same order" in message
    assert "datasets" in message
    reweighted = PARTS.replace("part: 1/2", "part: 1/2, weight: 1").replace("2/2", "2/2, weight: 2")
    assert ranks.run(opening, 1, folder=tmp_path, overrides=(reweighted,)) == [None]


def table(folder):
    rows = (folder / "duplicates.csv").read_text().splitlines()
    assert rows[0] == "dataset_a,class_a,dataset_b,class_b,similarity,lead"
    return [row.split(",") for row in rows[1:]]


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_duplicates_are_listed_and_a_reviewed_list_is_used(ranks, tmp_path, world):
    ranks.run(train, world, folder=tmp_path / "run", overrides=(PARTS, *LEARNS))
    found = table(tmp_path / "run")
    leads = [float(row[5]) for row in found]
    assert leads == sorted(leads, reverse=True)
    assert {(row[0], row[2]) for row in found} == {("synthetic-1", "synthetic-2")}
    right = [row for row in found if row[1] == row[3]]
    assert len(right) >= 8
    reviewed = tmp_path / "reviewed.csv"
    reviewed.write_text(
        "\n".join(["dataset_a,class_a,dataset_b,class_b", *(",".join(row[:4]) for row in right)])
    )
    known = f"head.baskets.rule={{kind: known, pairs: {reviewed}}}"
    ranks.run(train, world, folder=tmp_path / "known", overrides=(PARTS, known))
    reviewed.write_text(
        "dataset_a,class_a,dataset_b,class_b\nsynthetic-1,class-000000,other,class-000000\n"
    )
    (message, *_) = ranks.run(opening, 1, folder=tmp_path / "none", overrides=(PARTS, known))
    assert (
        "no class 'class-000000' in a dataset 'other'; allowed: classes of synthetic-1" in message
    )
    reviewed.write_text("dataset_a,class_a,dataset_b\nsynthetic-1,class-000000,other\n")
    (message, *_) = ranks.run(opening, 1, folder=tmp_path / "none", overrides=(PARTS, known))
    assert "line 2 has no class_b" in message


def events(folder):
    return [json.loads(line) for line in (folder / "links.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_linking_resumes_exactly(ranks, tmp_path, world):
    overrides = (PARTS, *LEARNS, LINKS, "train.checkpoint_every=6", "head.baskets.duplicates=null")
    for folder, stop_after in (("a", None), ("b", 21), ("b", None)):
        ranks.run(
            train, world, folder=tmp_path / folder, overrides=overrides, stop_after=stop_after
        )
    assert events(tmp_path / "a") == events(tmp_path / "b")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")
    links = [event for event in events(tmp_path / "a") if event["kind"] == "link"]
    assert links
    named = {"step", "kind", "class_a", "class_b", "cosine", "lead", "a", "b"}
    assert named <= links[0].keys()
    assert links[0]["a"].startswith("synthetic-1:class-")
    checks = [line for line in lines(tmp_path / "a") if line["kind"] == "linking"]
    assert [line["step"] for line in checks] == list(range(4, 41, 4))
    assert checks[-1]["merged"] == sum(line["link"] - line["split"] for line in checks)


def test_a_second_training_starts_from_what_the_first_merged(ranks, tmp_path):
    ranks.run(train, 1, folder=tmp_path / "first", overrides=(PARTS, *LEARNS, LINKS))
    listed = (tmp_path / "first" / "merged.csv").read_text().splitlines()
    assert listed[0] == "dataset_a,class_a,dataset_b,class_b"
    checks = [line for line in lines(tmp_path / "first") if line["kind"] == "linking"]
    assert len(listed) - 1 == checks[-1]["merged"] > 0
    merge = f"head.baskets.merge={tmp_path / 'first' / 'merged.csv'}"
    ranks.run(train, 2, folder=tmp_path / "second", overrides=(PARTS, merge))
    assert (tmp_path / "second" / "merged.csv").read_text().splitlines() == listed


def test_the_images_are_more_than_one_batch_of_a_pass():
    assert PASS_BATCH < 23 * 4  # so that what is above goes through several
