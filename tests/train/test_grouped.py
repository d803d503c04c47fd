"""Training in the order of row groups: the same samples at every world size, continued exactly."""

import numpy as np
import pytest
from small_runs import assert_equal_states, losses, settings, train

from mpsoftmax.data.convert import convert
from mpsoftmax.data.parquet_output import write_parquet
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.train.datasets import build_order, open_held_back, open_training_images
from mpsoftmax.train.evaluation import open_evaluation_set

GROUPED = ("data.order=grouped", "data.order_window=2")


@pytest.fixture
def data(tmp_path):
    """23 classes of 4 images in row groups of 10."""
    path = tmp_path / "set.parquet"
    write_parquet(path, Synthetic(num_classes=23, images_per_class=4, size=(16, 16)), group_rows=10)
    return f"data.train={path}"


def test_other_world_sizes_and_a_stop(ranks, tmp_path, data):
    alone = (data, *GROUPED)
    ranks.run(train, 1, folder=tmp_path / "one", overrides=alone)
    ranks.run(train, 3, folder=tmp_path / "three", overrides=alone)
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    ranks.run(train, 2, folder=tmp_path / "whole", overrides=alone)
    every = (*alone, "train.checkpoint_every=3")
    ranks.run(train, 2, folder=tmp_path / "cut", overrides=every, stop_after=7)
    ranks.run(train, 2, folder=tmp_path / "cut", overrides=every)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert_equal_states(tmp_path / "cut", tmp_path / "whole")
    ranks.run(train, 1, folder=tmp_path / "uniform", overrides=(data,))
    assert losses(tmp_path / "uniform") != losses(tmp_path / "one")


def test_a_mixture_of_grouped_sets_and_the_readers_memory(tmp_path, data):
    listed = f"data.train=[{data.partition('=')[2]}, {{path: {tmp_path / 'b.arrow'}, name: b}}]"
    convert(tmp_path / "set.parquet", tmp_path / "b.arrow")
    config = settings(tmp_path / "run", listed, "data.order=grouped", "data.order_window=20")
    images = open_training_images(config)
    assert images.parts[0].cache_groups == 20
    samples = build_order(config, images).samples(0, 2 * 92)
    assert sorted(samples.tolist()) == list(range(2 * 92))


def test_a_set_without_groups_is_refused(tmp_path):
    config = settings(tmp_path, "data.order=grouped")
    with pytest.raises(
        ValueError, match=r"data\.order: grouped; allowed where images are read in gr"
    ):
        build_order(config, open_training_images(config))


def test_options_reach_the_reader(tmp_path, data):
    with pytest.raises(
        ValueError, match=r"data\.train: data '.*set\.parquet': dialect='csv' is no opt"
    ):
        open_training_images(settings(tmp_path, data, "data.reader={dialect: csv}"))
    with pytest.raises(ValueError, match="one column 'fine' expected, columns are image, label"):
        open_training_images(settings(tmp_path, data, "data.reader.label_column=fine"))
    with pytest.raises(
        ValueError, match=r"data\.reader: .*allowed only where data.train is a path"
    ):
        open_training_images(settings(tmp_path, "data.reader={dialect: csv}"))


def test_held_back_classes_are_judged_and_not_trained_on(ranks, tmp_path, data):
    held = (data, "data.held_back=8", "data.eval=[held-back]")
    ranks.run(train, 2, folder=tmp_path / "run", overrides=(*held, "train.steps=2"))
    config = settings(tmp_path / "run", *held)
    training, judged = open_training_images(config), open_held_back(config)
    assert (len(training.class_names), len(judged.class_names)) == (15, 8)
    assert not set(training.class_names) & set(judged.class_names)
    chosen = open_evaluation_set("held-back", config)
    assert chosen.mirror  # BASE flips
    labels = np.asarray(chosen.images.labels)[chosen.pairs]
    assert np.array_equal(labels[:, 0] == labels[:, 1], chosen.same)
    assert len(chosen.pairs) == 80  # 8 classes give 6 same pairs each: 40 of each kind
    evaluated = list((tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert any('"set": "held-back"' in one for one in evaluated)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.held_back=3"], "both a number of classes and 'held-back' among data.eval"),
        (["data.eval=[held-back]"], "both a number of classes and 'held-back' among data.eval"),
        (
            ["data.held_back=3", "data.eval=[held-back]", "data.train=[a, b]"],
            "allowed where data.train is one dataset",
        ),
    ],
)
def test_held_back_settings_that_do_not_go_together(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, *overrides)
