"""Other classes than the run that one starts from: grown, shrunk, renamed, merged, at other world sizes."""

import math

import numpy as np
import pytest
import torch
from small_runs import losses, settings, train
from torch.nn.functional import normalize

from mpsoftmax.comm import Comm
from mpsoftmax.train.class_matching import match_names, read_renamed
from mpsoftmax.train.class_names import read_names, write_names
from mpsoftmax.train.datasets import open_training_images
from mpsoftmax.train.loop import Trainer

OLD, NEW = 23, 26


def classes(number):
    return f"data.synthetic={{num_classes: {number}, images_per_class: 4}}"


def started(folder, overrides):
    """Rows before the first step; what was said; and the new classes' features by the net, image by image."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    head, images = trainer.head, open_training_images(trainer.config)
    features = {}
    net = trainer.net.eval()
    with torch.no_grad():
        for index, label in enumerate(images.labels.tolist()):
            if label >= OLD:
                pixels = torch.from_numpy(np.array(images.image(index))).permute(2, 0, 1)[None]
                features.setdefault(label, []).append(net(pixels.float() / 127.5 - 1)[0])
    rows = head.class_rows(torch.arange(head.num_classes))
    trainer.log.close()
    return rows, {label: torch.stack(found) for label, found in features.items()}


@pytest.fixture(scope="module")
def old(ranks, tmp_path_factory):
    """A run of 23 classes on 2 ranks, and its rows."""
    folder = tmp_path_factory.mktemp("old") / "run"
    ranks.run(train, 2, folder=folder)
    rows, _ = ranks.run(started, 1, folder=folder, overrides=())[0]
    return folder, rows


def test_the_names_are_kept(old, tmp_path):
    folder, _ = old
    names = read_names(folder / "checkpoints" / "step-10", OLD)
    assert list(names) == [f"class-{number:06d}" for number in range(OLD)]
    strange = ["a", "b\\n", "c\nd", "e\\\\n\r", "", "\udc80"]
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    write_names(tmp_path, strange)
    assert list(read_names(tmp_path / "checkpoints" / "step-1", 6)) == strange


@pytest.mark.parametrize("world", [1, 2, 3])
def test_grown_by_means(ranks, tmp_path, old, world):
    folder, rows = old
    grown = (classes(NEW), f"head.start_from={folder}", f"backbone.start_from={folder}")
    answers = ranks.run(
        started, world, folder=tmp_path / "new", overrides=(*grown, "head.new_rows=class_mean")
    )
    for now, features in answers:
        torch.testing.assert_close(now[:OLD], rows, rtol=1e-5, atol=1e-6)
        length = rows.norm(dim=1).mean()
        for label in range(OLD, NEW):
            mean = normalize(features[label], dim=1).mean(0)
            expected = normalize(mean, dim=0) * length
            torch.testing.assert_close(now[label], expected, rtol=1e-4, atol=1e-5)


def test_grown_at_random_and_trained(ranks, tmp_path, old, capsys):
    folder, rows = old
    fresh, _ = ranks.run(started, 1, folder=tmp_path / "fresh", overrides=(classes(NEW),))[0]
    grown = (classes(NEW), f"head.start_from={folder}", "head.new_rows=random")
    now, _ = ranks.run(started, 2, folder=tmp_path / "new", overrides=grown)[0]
    torch.testing.assert_close(now[:OLD], rows, rtol=1e-5, atol=1e-6)
    assert torch.equal(now[OLD:], fresh[OLD:])
    Trainer(settings(tmp_path / "told", *grown), Comm()).log.close()
    told = capsys.readouterr().out
    assert "23 classes by name, from 23 rows; 0 old classes left; of 3 new classes 0 begin" in told
    ranks.run(train, 3, folder=tmp_path / "new", overrides=grown)
    assert len(losses(tmp_path / "new")) == 10
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "new"))


def test_shrunk(ranks, tmp_path, old):
    folder, rows = old
    fewer = (classes(20), f"head.start_from={folder}", "head.new_rows=random")
    now, _ = ranks.run(started, 3, folder=tmp_path / "new", overrides=fewer)[0]
    torch.testing.assert_close(now, rows[:20], rtol=1e-5, atol=1e-6)


def test_merged_renamed_and_dropped(ranks, tmp_path, old):
    """Two become one (their mean direction, of their mean length), one is left, one takes its name."""
    folder, rows = old
    table = tmp_path / "renamed.csv"
    table.write_text(
        "old,new,why\nclass-000001,class-000000,twins\nclass-000002,,noise\n"
        "class-000003,class-000002,moved\n"
    )
    changed = (
        classes(22), f"head.start_from={folder}", "head.new_rows=random", f"head.renamed={table}",
    )  # fmt: skip
    fresh, _ = ranks.run(started, 1, folder=tmp_path / "fresh", overrides=(classes(22),))[0]
    now, _ = ranks.run(started, 2, folder=tmp_path / "new", overrides=changed)[0]
    twins = rows[:2]
    mean = normalize(normalize(twins, dim=1).sum(0), dim=0) * twins.norm(dim=1).mean()
    torch.testing.assert_close(now[0], mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(now[2], rows[3], rtol=1e-5, atol=1e-6)
    assert torch.equal(now[[1, 3]], fresh[[1, 3]])
    torch.testing.assert_close(now[4:], rows[4:22], rtol=1e-5, atol=1e-6)


def test_merged_in_the_old_run(ranks, tmp_path):
    """A class whose row was another's there begins with the row that both shared."""
    ranks.run(merged_run, 2, folder=tmp_path / "old")
    changed = (classes(24), f"head.start_from={tmp_path / 'old'}", "head.new_rows=random")
    now, _ = ranks.run(started, 2, folder=tmp_path / "new", overrides=changed)[0]
    assert torch.equal(now[5], now[7])
    assert not torch.equal(now[5], now[6])


def merged_run(folder):
    trainer = Trainer(settings(folder), Comm())
    trainer.head.merge_classes([(5, 7)])
    trainer.run()


def test_matching_by_hand():
    found = match_names(["a", "b", "c", "d"], ["d", "x", "a"], {"b": "a", "c": ""})
    assert found.pairs.tolist() == [[0, 3], [2, 0], [2, 1]]
    assert found.new.tolist() == [1]
    assert found.num_left == 1


def test_mistakes(ranks, tmp_path, old):
    folder, _ = old

    def refused(message, *overrides):
        with pytest.raises((AssertionError, ValueError), match=message):
            ranks.run(started, 2, folder=tmp_path / "new", overrides=(classes(24), *overrides))

    start = f"head.start_from={folder}"
    refused("new_rows: random; allowed only with head.start_from", "head.new_rows=random")
    refused("allowed only with backbone.start_from", start, "head.new_rows=class_mean")
    refused("renamed: x; allowed only with head.new_rows", start, "head.renamed=x")
    refused("has 23 classes; allowed: 24", start)
    random = (start, "head.new_rows=random")
    refused("renamed: .*nowhere: cannot be read", *random, f"head.renamed={tmp_path}/nowhere")
    table = tmp_path / "table.csv"
    for text, message in (
        ("a,b\n", "columns .*expected old,new"),
        ("old,new\nx,y\n", "'x' is no class of the old run"),
        ("old,new\nclass-000001,y\n", "'y' is no class of data.train"),
        ("old,new\nclass-000001,\nclass-000001,\n", "line 3: old='class-000001'"),
    ):
        table.write_text(text)
        refused(message, *random, f"head.renamed={table}")
    with pytest.raises(ValueError, match=r"two classes of data\.train are named"):
        match_names(["b"], ["a", "a"], {})
    assert read_renamed(None) == {}
    table.write_bytes(b"\xef\xbb\xbfold,new\r\na,b\r\n")  # as spreadsheets save it
    assert read_renamed(str(table)) == {"a": "b"}
    names = folder / "classes.txt"
    text = names.read_text()
    try:
        names.write_text("only\n")
        refused("classes.txt: 1 names; the checkpoint has 23 classes", *random)
        names.write_text("x\n" * 22 + "y\n")
        refused("two classes of checkpoint are named 'x'", *random)
        names.write_text("".join(f"x{number}\n" for number in range(23)))
        refused("no class of checkpoint .* has a name that data.train has", *random)
        names.unlink()
        refused("classes.txt: cannot be read", *random)
    finally:
        names.write_text(text)
