"""What ``inspect`` finds in sets of every format."""

import io
import pickle
import struct

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mpsoftmax.data.convert import convert
from mpsoftmax.data.inspect import inspect


def picture(seed, height=8, width=6, form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


CORRUPT = picture(99, 40, 40, "JPEG")[:-400]


@pytest.fixture
def folder(tmp_path):
    """7 classes with 1, 1, 2, 3, 4, 5 and 11 images; duplicates; one cut image; leftovers."""
    root, seed = tmp_path / "set", 0
    for name, count in zip("abcdefg", (1, 1, 2, 3, 4, 5, 11), strict=True):
        (root / name).mkdir(parents=True)
        for number in range(count):
            seed += 1
            (root / name / f"{number:02d}.png").write_bytes(picture(seed, 8 + (name == "g")))
    (root / "c/01.png").write_bytes((root / "c/00.png").read_bytes())
    (root / "d/00.png").write_bytes((root / "a/00.png").read_bytes())
    (root / "f/03.png").write_bytes(CORRUPT)
    (root / "f/notes.txt").write_text("?")
    (root / "nobody").mkdir()
    return root


def problems(inspection):
    return {problem.kind: problem for problem in inspection.problems}


def check_set(found):
    assert (found.num_images, found.num_classes, found.num_ignored) == (27, 7, 0)
    assert found.num_examined == 27
    assert found.class_sizes.tolist() == [1, 1, 2, 3, 4, 5, 11]
    assert {k: v for k, v in found.histogram().items() if v} == {
        "1": 2,
        "2-4": 3,
        "5-9": 1,
        "10-19": 1,
    }
    assert found.sizes == {(8, 6): 15, (9, 6): 11}
    assert list(found.sizes) == [(8, 6), (9, 6)]
    by_kind = problems(found)
    assert by_kind["undecodable images"].count == 1
    within = by_kind["groups of identical images within a class"]
    across = by_kind["groups of identical images across classes"]
    assert (within.count, across.count) == (1, 1)
    return by_kind


def test_folder(folder):
    found = inspect(folder)
    assert found.format == "folder"
    by_kind = check_set(found)
    assert by_kind["undecodable images"].examples[0].startswith(str(folder / "f/03.png"))
    group = by_kind["groups of identical images across classes"].examples[0]
    assert group == f"{folder / 'a/00.png'} = {folder / 'd/00.png'}"
    noticed = by_kind["noticed by the reader"]
    assert noticed.count == 2
    assert any("notes.txt" in text for text in noticed.examples)
    assert any("nobody: empty folder" in text for text in noticed.examples)
    assert len(by_kind) == 4


@pytest.mark.parametrize(
    ("name", "style", "kind"),
    [
        ("a.tar", "auto", "tar"),
        ("a.rec", "insightface", "rec (insightface)"),
        ("a.rec", "im2rec", "rec (im2rec)"),
        ("a.arrow", "auto", "arrow"),
    ],
)
def test_other_formats_show_the_same(tmp_path, folder, name, style, kind):
    convert(folder, tmp_path / name, style=style)
    found = inspect(tmp_path / name)
    assert found.format == kind
    assert len(check_set(found)) == 3


def test_rendered_text(folder):
    text = inspect(folder).render()
    for part in (
        f"{folder}: folder",
        "images    27",
        "classes   7",
        "min 1, median 3, max 11; 2 classes with a single image",
        "2-4 images          3 classes",
        "examined  27 of 27 images",
        "8 x 6 (height x width): 15",
        "problems  4",
        "undecodable images: 1",
        "notes.txt",
    ):
        assert part in text, part
    assert "ignored" not in text


def test_sample_is_counted_and_repeatable(folder):
    first, second = inspect(folder, sample=10), inspect(folder, sample=10)
    assert first.num_examined == 10
    assert first.num_images == 27
    assert first.render() == second.render()
    assert inspect(folder, sample=0).sizes == {}
    assert inspect(folder, sample=None).num_examined == 27
    with pytest.raises(ValueError, match="sample is -1"):
        inspect(folder, sample=-1)
    calls = []
    inspect(folder, sample=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_labels_out_of_range_and_empty_classes_are_reported(tmp_path):
    labels = [0, 5, -1, -7, 2]
    schema = pa.schema(
        [("image", pa.binary()), ("label", pa.int64())],
        {b"mpsoftmax.class_names": b'["p", "nobody", "q"]'},
    )
    images = [picture(i) for i in range(5)]
    batch = pa.record_batch([pa.array(images), pa.array(labels)], schema=schema)
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch)
    found = inspect(path)
    assert found.class_sizes.tolist() == [1, 0, 1]
    assert found.num_ignored == 1
    by_kind = problems(found)
    assert by_kind["labels out of range"].examples == (f"{path}: row 1: 5", f"{path}: row 3: -7")
    assert by_kind["empty classes"].examples == ("nobody",)
    assert "ignored   1 (label -1)" in found.render()


def test_header_and_property_disagreements_are_reported(tmp_path, folder):
    convert(folder, tmp_path / "train.rec")
    data = (tmp_path / "train.rec").read_bytes()
    header = struct.pack("<2f", 28, 35)
    assert data.count(header) == 1
    (tmp_path / "train.rec").write_bytes(data.replace(header, struct.pack("<2f", 28, 36)))
    (tmp_path / "property").write_text("9,8,6\n")
    noticed = problems(inspect(tmp_path))["noticed by the reader"]
    assert noticed.count == 2
    assert "9 classes stated" in noticed.examples[0]
    assert "27 images and 7 identities" in noticed.examples[1]


def test_bin(tmp_path):
    items = [picture(1), picture(2), picture(1), CORRUPT]
    (tmp_path / "a.bin").write_bytes(pickle.dumps((items, [True, False])))
    found = inspect(tmp_path / "a.bin")
    assert (found.format, found.num_pairs, found.num_same) == ("bin", 2, 1)
    assert (found.num_images, found.num_classes) == (3, 0)
    assert list(problems(found)) == ["undecodable images"]
    assert "pairs     2 (1 same)" in found.render()
    assert "classes" not in found.render()


def test_long_lists_are_cut(tmp_path):
    for number in range(9):
        (tmp_path / "set/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/a/{number}.jpg").write_bytes(b"no image %d" % number)
    found = inspect(tmp_path / "set")
    (problem,) = found.problems
    assert (problem.count, len(problem.examples)) == (9, 5)
    assert "and 4 more" in found.render()


def test_an_unreadable_set_is_an_error(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"ARROW1")
    with pytest.raises(ValueError, match=r"a\.arrow"):
        inspect(tmp_path / "a.arrow")
