"""What training leaves for the page: a sample of classes, the hardest pairs, on any number of ranks."""

import json

import numpy as np
import pytest
import torch
from given_images import GivenImages
from made_runs import Page
from small_pairs import write_pairs
from small_runs import BASE, settings
from torch.nn.functional import normalize

from mpsoftmax.cli import main
from mpsoftmax.comm import Comm
from mpsoftmax.data.thumbnail import LONGEST_SIDE, thumbnail
from mpsoftmax.evaluate.hardest import hardest_pairs
from mpsoftmax.kernels.select import chosen
from mpsoftmax.report.recompute import recompute
from mpsoftmax.track.environment import commit, environment
from mpsoftmax.track.run_record import evaluation_file
from mpsoftmax.train.class_quality import (
    IMAGES_OF_CLASS,
    class_quality,
    class_statistics,
    images_allowed,
    nearest_in_sample,
    sample_classes,
)
from mpsoftmax.train.loop import Trainer


def test_the_hardest_pairs_by_hand():
    similarity = np.array([0.9, 0.1, 0.2, 0.8, 0.7, 0.3, 0.1])
    same = np.array([True, True, True, False, False, False, True])
    pairs = np.array([[0, 1], [2, 3], [3, 4], [0, 2], [0, 5], [6, 7], [8, 9]])
    genuine, impostor = hardest_pairs(similarity, same, pairs, 3)
    assert genuine.tolist() == [1, 6, 0]  # pair 2 shows image 3 again
    assert impostor.tolist() == [3, 5]  # pair 4 shows image 0 again
    assert hardest_pairs(similarity, same, pairs, 1)[0].tolist() == [1]


def test_a_thumbnail_is_what_the_model_sees():
    import base64
    import io

    from PIL import Image

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 15:45] = (200, 30, 40)  # the central half
    uri = thumbnail(GivenImages([pixels], [0], ["a"]), 0, size=(20, 30), crop=0.5)
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert shown.shape == (20, 30, 3)
    assert (shown == (200, 30, 40)).all()
    large = thumbnail(GivenImages([pixels], [0], ["a"]), 0, size=(448, 224))
    data = large.split(",")[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (56, LONGEST_SIDE)


def test_the_sample_takes_classes_of_all_sizes():
    """1000 classes of one image, 20 of five, one of 300, one without any; images of no class."""
    labels = np.concatenate(
        [np.arange(1000), np.repeat(np.arange(1000, 1020), 5), np.full(300, 1021), np.full(9, -1)]
    )
    labels = np.random.default_rng(1).permutation(labels)
    chosen = sample_classes(labels, 1022, 70, seed=0)
    assert len(chosen) <= 70
    assert len(np.unique(chosen)) == len(chosen)
    counts = np.bincount(labels[chosen], minlength=1022)
    assert counts[1021] == IMAGES_OF_CLASS
    whole = counts[1000:1020]
    assert set(whole.tolist()) == {0, 5}
    assert abs(int((whole > 0).sum()) - int(counts[:1000].sum())) <= 1  # they take turns
    assert np.array_equal(chosen, sample_classes(labels, 1022, 70, seed=0))
    assert not np.array_equal(chosen, sample_classes(labels, 1022, 70, seed=1))
    everything = sample_classes(np.array([0, 1, 1, -1]), 3, 4096, seed=0)
    assert everything.tolist() == [0, 1, 2]


def test_what_it_may_cost():
    assert [images_allowed(n) for n in (0, 10_000, 10**9)] == [256, 500, 4096]


def test_statistics_of_classes_against_pairs_one_by_one():
    torch.manual_seed(0)
    features = normalize(torch.randn(9, 5))
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 3, 0, 2])
    means, counts, within = class_statistics(features, labels, 4)
    assert counts.tolist() == [5, 0, 3, 1]
    for label in (0, 2):
        own = features[labels == label]
        pairs = [float(own[i] @ own[j]) for i in range(len(own)) for j in range(len(own)) if i != j]
        assert float(within[label]) == pytest.approx(np.mean(pairs), abs=1e-6)
        assert torch.allclose(means[label], normalize(own.mean(0), dim=0), atol=1e-6)
    assert within[[1, 3]].isnan().all()


def looked_at(folder):
    """A short training, and the classes as they are seen once more after it."""
    trainer = Trainer(settings(folder, "train.steps=6"), Comm())
    trainer.run()
    parts = (trainer.config, trainer.images, trainer.net, trainer.head, trainer.comm)
    return class_quality(*parts, step=6, samples=72)


def test_classes_on_any_number_of_ranks(ranks, tmp_path):
    trees = {}
    for world in (1, 2, 3):
        found = ranks.run(looked_at, world, folder=tmp_path / str(world))
        assert found == [found[0]] * world
        written = json.loads((tmp_path / str(world) / "report" / "classes.json").read_text())
        assert written == found[0]
        trees[world] = found[0]
    for world, tree in trees.items():
        columns = tree["classes"]
        assert (tree["among"], tree["sampled_images"]) == ("table", 92)
        assert columns["id"] == list(range(23))
        assert columns["images"] == columns["used"] == [4] * 23
        assert all(other != own for other, own in zip(columns["other"], columns["id"], strict=True))
        for key in ("within", "angle_rad", "other_cosine"):
            expected = trees[1]["classes"][key]
            np.testing.assert_allclose(columns[key], expected, atol=5e-3, err_msg=f"{key} {world}")


def nearest_others(seed):
    from mpsoftmax import ModelParallelSoftmax

    head = ModelParallelSoftmax(embedding_dim=6, num_classes=11, objective="cosface")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(11, 6, generator=generator)
    head.load_rows(torch.arange(11), rows)
    comm = Comm()
    features = torch.randn(7, 6, generator=generator)
    own = torch.randint(11, (7,), generator=generator)
    mine = slice(comm.rank, None, comm.world)
    ids, cosine = head.nearest_classes(features[mine], other_than=own[mine])
    cosines = normalize(features) @ normalize(rows).T
    cosines[torch.arange(7), own] = -2.0
    return ids, cosine, cosines.max(1).indices[mine], cosines.max(1).values[mine]


@pytest.mark.parametrize("world", [1, 3])
def test_the_nearest_other_class(ranks, world):
    for seed in range(3):
        for ids, cosine, expected, value in ranks.run(nearest_others, world, seed=seed):
            assert torch.equal(ids, expected)
            assert torch.allclose(cosine, value, atol=1e-6)


def test_of_a_large_table_the_sample_alone_is_searched():
    means = normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.1]]))
    ids = torch.tensor([4, 7, 9])
    others, cosine = nearest_in_sample(None, ids, means, None)
    assert others.tolist() == [7, 4, 7]
    assert cosine[:2].tolist() == pytest.approx([0.8, 0.8])


def test_a_file_for_a_set_of_any_name():
    names = ["lfw", "../../etc/passwd", "a b", "a_b", "\udcff", "x" * 500]
    files = [evaluation_file(name) for name in names]
    assert files[0] == "evaluation-lfw.json"
    assert len(set(files)) == len(names)
    assert all("/" not in file and len(file) < 120 and file.isascii() for file in files)


def test_what_a_run_ran_on(tmp_path):
    found = environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__
    assert found["device"] == "cpu"
    json.dumps(found)
    assert commit(tmp_path) is None  # outside any checkout


def failing(folder):
    """Looking at the classes fails on the last rank only."""

    def broken(*_, **__):
        raise RuntimeError("no room")

    comm = Comm()
    trainer = Trainer(settings(folder, "train.steps=2"), comm)
    if comm.rank == comm.world - 1:
        from mpsoftmax.train.centres import DataPass

        original, DataPass.features = DataPass.features, broken
        try:
            return trainer.run().steps
        finally:
            DataPass.features = original
    return trainer.run().steps


@pytest.mark.parametrize("world", [1, 2])
def test_what_fails_there_is_no_failed_training(ranks, tmp_path, world):
    assert ranks.run(failing, world, folder=tmp_path) == [2] * world
    assert not (tmp_path / "report" / "classes.json").exists()
    lines = (tmp_path / "report" / "sessions.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["outcome"] == "finished"
    kernel = json.loads(lines[0])["facts"]["environment"]["kernel"]
    assert kernel == chosen("auto", torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The command, as a person calls it: trained, stopped short, gone on with."""
    folder = tmp_path_factory.mktemp("trained")
    pairs = write_pairs(folder / "pairs.bin")
    config = folder / "config.yaml"
    config.write_text("train: {log_every: 1}\n")
    given = [*BASE, f"run.dir={folder / 'run'}", f"data.eval=[{pairs}]", "train.eval_every=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpsoftmax.train.loop.StopSignals.agreed", stop_after(4))
        assert main(["train", str(config), *given]) == 143
        stopped = (folder / "run" / "report.html").read_text()
        patch.undo()
        assert main(["train", str(config), *given]) == 0
    return folder / "run", stopped


def stop_after(step):
    import signal

    calls = []

    def agreed(self):
        calls.append(1)
        return signal.SIGTERM if len(calls) == step else None

    return agreed


def test_every_training_leaves_its_page(trained):
    folder, stopped = trained
    assert "stopped before its last step" in Page(stopped).text()
    page = Page((folder / "report.html").read_text())
    said = page.text()
    ids = [attributes.get("id") for tag, attributes in page.elements if tag == "section"]
    assert ids == ["summary", "evaluation", "training", "classes", "time", "setup"]
    for words in (
        "finished",
        "1, from step 4",
        "10 of 10",
        "92 images of 23 classes",
        "ROC",
        "DET",
    ):
        assert words in said, words
    assert "missing" not in [attributes.get("class") for _, attributes in page.elements]
    assert sum(tag == "img" for tag, _ in page.elements) >= 20
    accuracy = [
        json.loads(line)["accuracy"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if '"eval"' in line
    ]
    assert len(accuracy) == 4
    assert f"{accuracy[-1]:.4f}" in said
    tree = json.loads((folder / "report" / "evaluation-pairs.json").read_text())
    low, high = tree["verification"]["accuracy_interval"]
    assert low <= accuracy[-1] <= high
    assert tree["verification"]["accuracy"] == accuracy[-1]


def test_recomputed_from_the_checkpoint_it_is_the_same(trained, ranks):
    folder, _ = trained
    names = ("evaluation-pairs.json", "classes.json")
    before = [json.loads((folder / "report" / name).read_text()) for name in names]
    for name in names:
        (folder / "report" / name).unlink()
    ranks.run(recomputed, 2, folder=folder)
    after = [json.loads((folder / "report" / name).read_text()) for name in names]
    assert after[0]["hardest"] == before[0]["hardest"]
    assert after[0]["verification"] == before[0]["verification"]
    for key in ("id", "images", "other", "name"):
        assert after[1]["classes"][key] == before[1]["classes"][key]
    for key in ("within", "angle_rad", "other_cosine"):
        np.testing.assert_allclose(after[1]["classes"][key], before[1]["classes"][key], atol=2e-5)


def recomputed(folder):
    recompute(folder, Comm())


def test_nothing_is_gathered_where_it_is_not_wanted(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("track: {report: false}\n")
    given = [*BASE, f"run.dir={tmp_path / 'run'}", "train.steps=1"]
    assert main(["train", str(config), *given]) == 0
    assert not (tmp_path / "run" / "report").exists()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_page_that_fails_is_said_and_no_failed_training(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr("mpsoftmax.report.write_report", broken)
    given = [*BASE, f"run.dir={tmp_path / 'run'}", "train.steps=1"]
    config = tmp_path / "config.yaml"
    config.write_text("{}\n")
    assert main(["train", str(config), *given]) == 0
    assert (
        "report: not written: RuntimeError: no room; try mpsoftmax report"
        in capsys.readouterr().out
    )
