"""Passes over the training images: exact class means, and runs whose centres are refreshed from them."""

import pytest
import torch
from small_runs import assert_equal_states, lines, losses, settings, train
from torch.nn.functional import normalize

from mpsoftmax.comm import Comm
from mpsoftmax.data.loader import Loader
from mpsoftmax.data.pixels import to_float
from mpsoftmax.train.datasets import open_training_images
from mpsoftmax.train.loop import Trainer

CENTRES = "head.weights={kind: class_centres, rule: ema, refresh_every: 4}"
EXACT = "head.weights={kind: class_centres, rule: exact, features: raw, refresh_every: 3}"


def pass_and_truth(folder, overrides):
    """Class means of the fresh net by a pass, on all ranks, and by a plain loop over single images."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    trainer.log.close()
    before = torch.get_rng_state()
    means = trainer.data_pass.class_means(trainer.net, trainer.head)
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.net.training
    classes, rows = means.means()
    images = open_training_images(trainer.config)
    loader = Loader(images, None, size=trainer.config.data.image_size)
    sums = torch.zeros(len(images.class_names), 16)
    trainer.net.eval()
    for batch in loader.stream((i, i + 1) for i in range(len(images))):
        with torch.no_grad():
            sums[batch.labels] += normalize(trainer.net(to_float(batch.images)))
    start, _ = trainer.head.local_range
    return classes + start, rows, sums / torch.bincount(torch.as_tensor(images.labels))[:, None]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_pass_gives_the_exact_means(ranks, tmp_path, world):
    overrides = ("backbone.options.norm=batch", "backbone.options.dropout=0.5")
    seen = []
    for classes, rows, truth in ranks.run(
        pass_and_truth, world, folder=tmp_path, overrides=overrides
    ):
        seen += classes.tolist()
        torch.testing.assert_close(rows, truth[classes], rtol=1e-5, atol=1e-6)
    assert seen == list(range(23))


@pytest.mark.parametrize("spec", [CENTRES, EXACT], ids=["ema", "exact"])
@pytest.mark.parametrize("world", [1, 2])
def test_refreshed_centres_resume_bit_identically(ranks, tmp_path, world, spec):
    overrides = (spec, "backbone.options.norm=batch", "train.checkpoint_every=4", "train.steps=12")
    for folder, stop_after in (("a", None), ("b", 6), ("b", None)):
        ranks.run(
            train, world, folder=tmp_path / folder, overrides=overrides, stop_after=stop_after
        )
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")
    refreshed = [line for line in lines(tmp_path / "a") if line["kind"] == "centres"]
    every = 4 if spec == CENTRES else 3
    assert [line["step"] for line in refreshed] == list(range(every, 13, every))
    assert all(0 <= line["drift_mean_rad"] <= line["drift_max_rad"] < 3.2 for line in refreshed)
    assert all(line["classes"] == 23 for line in refreshed)


def test_the_world_size_does_not_matter(ranks, tmp_path):
    for world in (1, 2, 3):
        ranks.run(train, world, folder=tmp_path / str(world), overrides=(CENTRES,))
    for world in (2, 3):
        assert losses(tmp_path / str(world)) == pytest.approx(losses(tmp_path / "1"), rel=1e-4)


def rows_after(folder, overrides):
    """Class rows after a run, and the exact means of the final net."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    trainer.run()
    ids, angles, counts = trainer.head.centre_angles(
        trainer.data_pass.class_means(trainer.net, trainer.head)
    )
    return ids.tolist(), float(angles.max()), counts.tolist()


def test_after_a_refresh_every_row_is_its_mean(ranks, tmp_path):
    for ids, worst, counts in ranks.run(
        rows_after, 2, folder=tmp_path, overrides=(EXACT, "train.steps=6")
    ):
        assert len(ids) in (11, 12)
        assert counts == [4] * len(ids)
        assert worst < 1e-3


def test_class_centres_learn_on_several_datasets(ranks, tmp_path):
    parts = "data.train=[{path: synthetic, part: 1/2}, {path: synthetic, part: 2/2}]"
    overrides = (parts, CENTRES, "train.steps=40", "train.optimizer.lr=0.05")
    ranks.run(train, 2, folder=tmp_path, overrides=overrides)
    curve = losses(tmp_path)
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
