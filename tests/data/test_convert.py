"""Conversion between the formats: bytes, labels, order and class names stay; all or nothing."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from given_images import GivenImages
from PIL import Image

from mpsoftmax.data.convert import convert
from mpsoftmax.data.open import open_images


def contents(images):
    names = list(images.class_names)
    return names, images.labels.tolist(), [images.image(i) for i in range(len(images))]


@pytest.fixture
def folder(tmp_path):
    """JPEG and PNG files of several sizes, one of them corrupt, in nested and odd folders."""
    rng = np.random.default_rng(0)
    root = tmp_path / "folder"
    files = ["10/b.jpg", "10/a.png", "9/z.jpg", "a b/é.jpg", "deep/er/1.JPG", "deep/er/2.jpg"]
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12 + number, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name, "PNG" if name.endswith("png") else "JPEG")
    (root / "9/broken.jpg").write_bytes(b"\xff\xd8\xff nothing \x0a\x23\xd7\xce more")
    return root


def test_chain_of_all_formats_is_exact(tmp_path, folder):
    expected = contents(open_images(folder))
    assert len(expected[2]) == 7
    source = folder
    chain = ["a.tar", "a.rec", "a.arrow", "sub/train.rec", "b.tar", "b.arrow", "again", "im.rec"]
    for name in chain:
        style = "im2rec" if name == "im.rec" else "auto"
        done = convert(source, tmp_path / name, style=style)
        source = tmp_path / name
        assert (done.num_images, done.num_classes, done.path) == (7, 4, source)
        assert contents(open_images(source)) == expected, name
    assert contents(open_images(tmp_path / "sub")) == expected
    assert (tmp_path / "sub/property").read_text() == "4,13,9\n"


def test_real_faces_through_all_formats(tmp_path, shared_data):
    source = shared_data / "lfw_test_a.tar"
    expected = contents(open_images(source))
    for name in ("train.rec", "a.arrow", "a.tar"):
        convert(source, tmp_path / name)
        source = tmp_path / name
        assert contents(open_images(source)) == expected, name


def test_file_names_are_kept_between_folder_and_tar(tmp_path, folder):
    convert(folder, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
    assert names == ["10/a.png", "10/b.jpg", "9/broken.jpg", "9/z.jpg", *names[4:]]
    convert(tmp_path / "a.tar", tmp_path / "back")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    back = sorted(
        p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*") if p.is_file()
    )
    assert back == files


def test_files_without_names_are_numbered_with_the_suffix_of_their_bytes(tmp_path):
    starts = [b"\xff\xd8\xff", b"\x89PNG", b"BM", b"RIFF", b"II*\0", b"P6", b"?"]
    images = GivenImages([*starts, b"\xff\xd8\xff"], [0] * 7 + [1], ["x", "y"])
    convert(images, tmp_path / "out")
    names = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")
    )
    suffixes = ["jpg", "png", "bmp", "webp", "tif", "ppm", "jpg"]
    assert names == [f"x/{i}.{s}" for i, s in enumerate(suffixes)] + ["y/7.jpg"]


@pytest.mark.parametrize("name", ["out", "out.tar", "out.rec", "out.arrow"])
def test_arrays_are_stored_without_loss(tmp_path, name):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (5, 4 + i, 3), dtype=np.uint8) for i in range(3)]
    convert(GivenImages(arrays, [0, 0, 1], ["p", "q"]), tmp_path / name)
    images = open_images(tmp_path / name)
    for index, array in enumerate(arrays):
        stored = np.asarray(Image.open(io.BytesIO(images.image(index))))
        np.testing.assert_array_equal(stored, array)
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        convert(GivenImages([arrays[0][..., 0]], [0], ["p"]), tmp_path / f"bad-{name}")


@pytest.mark.parametrize(
    ("target", "existing"),
    [
        ("out", "out/"),
        ("out", "out"),
        ("out.tar", "out.tar"),
        ("out.arrow", "out.arrow"),
        ("train.rec", "train.rec"),
        ("train.rec", "train.idx"),
        ("train.rec", "property"),
        ("train.rec", "train.classes.json"),
    ],
)
def test_nothing_is_overwritten(tmp_path, target, existing):
    place = tmp_path / existing
    place.mkdir() if existing.endswith("/") else place.write_bytes(b"precious")
    with pytest.raises(ValueError, match="exists already"):
        convert(GivenImages([b"a"], [0], ["p"]), tmp_path / target)
    assert [p.name for p in tmp_path.iterdir()] == [place.name]
    assert place.is_dir() or place.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["out", "out.tar", "train.rec", "out.arrow"])
def test_a_failure_leaves_nothing(tmp_path, name):
    images = GivenImages([b"a", b"b", OSError("disk gone")], [0, 0, 1], ["p", "q"])
    with pytest.raises(OSError, match="disk gone"):
        convert(images, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.tar", "train.rec", "out.arrow"])
def test_a_killed_conversion_shows_no_target(tmp_path, name):
    images = GivenImages([b"a", b"b", b"c"], [0, 0, 1], ["p", "q"])

    def die(done, total):
        if done == 2:
            os._exit(9)

    child = os.fork()
    if child == 0:
        convert(images, tmp_path / name, progress=die)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    calls = []
    convert(images, tmp_path / name, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert contents(open_images(tmp_path / name))[2] == [b"a", b"b", b"c"]


def test_styles_of_rec(tmp_path):
    grouped = GivenImages([b"a", b"b", b"c"], [1, 1, 0], ["p", "q"])
    mixed = GivenImages([b"a", b"b", b"c"], [1, 0, 1], ["p", "q"])
    assert convert(grouped, tmp_path / "g.rec").format == "rec (insightface)"
    assert convert(mixed, tmp_path / "m.rec").format == "rec (im2rec)"
    assert convert(mixed, tmp_path / "r.rec", regroup=True).format == "rec (insightface)"
    assert contents(open_images(tmp_path / "m.rec")) == contents(mixed)
    assert contents(open_images(tmp_path / "r.rec")) == (["p", "q"], [0, 1, 1], [b"b", b"a", b"c"])
    with pytest.raises(ValueError, match=r"only a \.rec has a style"):
        convert(mixed, tmp_path / "a.arrow", style="im2rec")
    with pytest.raises(ValueError, match="style is 'dali'"):
        convert(mixed, tmp_path / "d.rec", style="dali")


@pytest.mark.parametrize("name", ["a.rec", "a.arrow"])
def test_ignored_samples_and_empty_classes_are_carried(tmp_path, name):
    images = GivenImages([b"a", b"b", b"c"], [-1, 1, -1], ["none", "p", "also none"])
    convert(images, tmp_path / name)
    assert contents(open_images(tmp_path / name)) == contents(images)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 0], ["p", "q"], "sample 2: .*order.*regroup"),
        ([-1, 0, 1], ["p", "q"], "sample 0: .*ignored"),
        ([0, 0, 2], ["p", "q", "r"], "'q' has no image"),
        ([0, 0, 1], ["q", "p"], "'p' does not sort behind 'q'.*number_classes"),
        ([0, 0, 1], ["p", "p"], "'p' does not sort behind 'p'"),
        ([0, 0, 1], ["../p", "q"], r"'\.\./p' cannot be"),
        ([0, 0, 1], ["/p", "q"], "'/p' cannot be"),
        ([0, 0, 1], ["", "q"], "'' cannot be"),
        ([0, 0, 1], ["a//b", "q"], "'a//b' cannot be"),
        ([0, 0, 1], ["a/.b", "q"], "cannot be"),
        ([0, 0, 1], ["a\0", "q"], "cannot be"),
        ([0, 0, 1], ["a.jpg", "q"], "cannot be"),
    ],
)
@pytest.mark.parametrize("target", ["out", "out.tar"])
def test_what_a_tree_cannot_carry_is_refused(tmp_path, target, labels, names, message):
    with pytest.raises(ValueError, match=message):
        convert(GivenImages([b"a", b"b", b"c"], labels, names), tmp_path / target)
    assert list(tmp_path.iterdir()) == []


def test_numbered_classes_carry_any_names(tmp_path):
    names = [f"U+{9 - i}" for i in range(11)]
    images = GivenImages([bytes([i]) for i in range(11)], range(11), names)
    convert(images, tmp_path / "out", number_classes=True)
    found = contents(open_images(tmp_path / "out"))
    assert found == ([f"{i:02d}" for i in range(11)], list(range(11)), images.images)


def test_targets(tmp_path):
    images = GivenImages([b"a"], [0], ["p"])
    with pytest.raises(
        ValueError, match=r"expected \*\.tar, \*\.rec, \*\.arrow, \*\.parquet, or a folder"
    ):
        convert(images, tmp_path / "faces.zip")
    assert convert(images, f"{tmp_path}/faces.v2/").format == "folder"
    assert contents(open_images(tmp_path / "faces.v2"))[2] == [b"a"]
    with pytest.raises(ValueError, match="label 3 of sample 0"):
        convert(GivenImages([b"a"], [3], ["p"]), tmp_path / "a.arrow")


def test_part_of_a_tar(tmp_path, folder):
    convert(folder, tmp_path / "a.tar")
    convert(tmp_path / "a.tar", tmp_path / "deep.arrow", under="deep")
    names, labels, _ = contents(open_images(tmp_path / "deep.arrow"))
    assert (names, labels) == (["er"], [0, 0])


def test_class_names_survive_beside_a_rec(tmp_path, folder):
    convert(folder, tmp_path / "a.rec")
    names = json.loads((tmp_path / "a.classes.json").read_text(encoding="utf-8"))
    assert names == ["10", "9", "a b", "deep/er"]
