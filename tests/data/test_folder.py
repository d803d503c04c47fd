"""Folder per class and tar of it: rules of order, what is left out, three tar dialects."""

import io
import os
import pickle
import random
import tarfile

import numpy as np
import pytest

from mpsoftmax.data.folder import open_folder, open_tar
from mpsoftmax.data.image_set import Subset, keep_classes
from mpsoftmax.data.open import open_images
from mpsoftmax.data.string_table import NumberNames, StringTable

FILES = {
    "b/2.jpg": b"b2",
    "b/10.JPG": b"b10",
    "10/x.png": b"10x",
    "9/x.png": b"9x",
    "a/deep/er/1.webp": b"deep",
    "a-b/1.jpeg": b"a-b",
    "ünï/é.bmp": b"unicode",
}
# Plain string sort of the folder path, then of the file name: '10' < '9', '-' < '/'.
ORDER = [
    ("10", "10/x.png"),
    ("9", "9/x.png"),
    ("a-b", "a-b/1.jpeg"),
    ("a/deep/er", "a/deep/er/1.webp"),
    ("b", "b/10.JPG"),
    ("b", "b/2.jpg"),
    ("ünï", "ünï/é.bmp"),
]
NOT_USED = {
    "b/notes.txt": "not an image by its suffix",
    "b/.hidden.jpg": "hidden",
    ".cache/b/1.jpg": "hidden",
    "top.jpg": "outside any class folder",
}


def make_folder(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def make_tar(path, files, form=tarfile.GNU_FORMAT, prefix=""):
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def check_order(images):
    names = list(dict.fromkeys(folder for folder, _ in ORDER))
    assert list(images.class_names) == names
    assert images.labels.dtype == np.int64
    assert [names[label] for label in images.labels] == [folder for folder, _ in ORDER]
    assert [images.image(i) for i in range(len(images))] == [FILES[path] for _, path in ORDER]


def test_folder_order_and_leftovers(tmp_path):
    make_folder(tmp_path, FILES | dict.fromkeys(NOT_USED, b"?"))
    (tmp_path / "nobody").mkdir()
    images = open_folder(tmp_path)
    check_order(images)
    assert images.name(4) == str(tmp_path / "b/10.JPG")
    problems = dict(problem.split(": ", 1) for problem in images.problems)
    assert problems.pop("nobody") == "empty folder"
    assert problems.keys() == NOT_USED.keys()
    for path, why in NOT_USED.items():
        assert why in problems[path]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_tar_in_any_member_order_equals_the_folder(tmp_path, form, prefix):
    files = list((FILES | dict.fromkeys(NOT_USED, b"?")).items())
    random.Random(form).shuffle(files)
    images = open_tar(make_tar(tmp_path / "a.tar", files, form, prefix))
    check_order(images)
    assert images.name(4) == f"{tmp_path / 'a.tar'}:b/10.JPG"
    assert {problem.split(": ")[0] for problem in images.problems} == NOT_USED.keys()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_long_names(tmp_path, form):
    long = "/".join(["x" * 90] * 5)
    images = open_tar(
        make_tar(tmp_path / "a.tar", [(f"{long}/1.jpg", b"1"), ("y/1.jpg", b"2")], form)
    )
    assert list(images.class_names) == [long, "y"]
    assert [images.image(0), images.image(1)] == [b"1", b"2"]


def test_tar_links_repeats_and_folders(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder, link = tarfile.TarInfo("a"), tarfile.TarInfo("a/link.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "1.jpg"
        archive.addfile(folder)
        archive.addfile(link)
        for data in (b"old", b"newer"):
            member = tarfile.TarInfo("a/1.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    images = open_tar(tmp_path / "a.tar")
    assert [images.image(i) for i in range(len(images))] == [b"newer"]
    assert images.problems == (
        "a/link.jpg: symbolic link, not used",
        "a/1.jpg: several members of this name, the last is used",
    )


def test_under_takes_a_part(tmp_path):
    files = {"set/train/a/1.jpg": b"1", "set/train/b/1.jpg": b"2", "set/test/c/1.jpg": b"3"}
    folder = open_folder(make_folder(tmp_path / "f", files), under="set/train")
    tar = open_tar(make_tar(tmp_path / "a.tar", files.items()), under="set/train/")
    for images in (folder, tar):
        assert list(images.class_names) == ["a", "b"]
        assert [images.image(i) for i in range(len(images))] == [b"1", b"2"]
    assert tar.name(0).endswith("a.tar:set/train/a/1.jpg")


def test_linked_folders_are_followed_once(tmp_path):
    make_folder(tmp_path, {"a/1.jpg": b"1"})
    (tmp_path / "a/loop").symlink_to(tmp_path)
    images = open_folder(tmp_path)
    assert [images.image(i) for i in range(len(images))] == [b"1"]
    assert "reached twice" in images.problems[0]


def test_nothing_usable_says_what_was_found(tmp_path):
    make_folder(tmp_path, {"1.jpg": b"1"})
    with pytest.raises(ValueError, match=r"no images found.*1\.jpg: outside any class folder"):
        open_folder(tmp_path)
    with pytest.raises(ValueError, match="no images found"):
        open_tar(make_tar(tmp_path / "a.tar", [("readme.txt", b"")]))


def test_open_images_says_what_it_takes(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    for spec in (tmp_path / "missing", tmp_path / "a.zip", "glyph"):
        with pytest.raises(ValueError, match=r"'glyphs', 'synthetic', .*\*\.arrow"):
            open_images(str(spec))


def test_handles_survive_pickling_and_forking(tmp_path):
    images = open_tar(make_tar(tmp_path / "a.tar", FILES.items()))
    before = images.image(0)
    assert pickle.loads(pickle.dumps(images)).image(0) == before
    child = os.fork()
    if child == 0:
        os._exit(0 if all(images.image(0) == before for _ in range(50)) else 1)
    assert all(images.image(0) == before for _ in range(50))
    assert os.waitpid(child, 0)[1] == 0


def test_keep_classes_drops_and_relabels(tmp_path):
    files = {
        f"{c}/{i}.jpg": f"{c}{i}".encode()
        for c, n in zip("abcd", (3, 1, 2, 4), strict=True)
        for i in range(n)
    }
    images = open_folder(make_folder(tmp_path, files))
    kept = keep_classes(images, 3)
    assert list(kept.class_names) == ["a", "d"]
    assert kept.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [kept.image(i) for i in (0, 3)] == [b"a0", b"d0"]
    assert kept.name(3) == str(tmp_path / "d/0.jpg")
    assert keep_classes(images, 1) is images
    with pytest.raises(ValueError, match=r"min_images is 9.*largest: 4"):
        keep_classes(images, 9)


def test_keep_classes_keeps_ignored_samples(tmp_path):
    images = open_folder(make_folder(tmp_path, {"a/1.jpg": b"1", "b/1.jpg": b"2", "b/2.jpg": b"3"}))
    images.labels[1] = -1
    kept = keep_classes(Subset(images, np.arange(3), np.arange(2)), 1)
    assert kept.labels.tolist() == [0, -1, 1]
    images.labels[0] = -1
    assert keep_classes(images, 1).labels.tolist() == [-1, -1, 0]


def test_subset_refuses_what_it_cannot_label(tmp_path):
    images = open_folder(make_folder(tmp_path, {"a/1.jpg": b"1", "b/1.jpg": b"2"}))
    with pytest.raises(ValueError, match="not its class 1"):
        Subset(images, np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match=r"indices span 0\.\.2"):
        Subset(images, np.array([0, 2]), np.array([0, 1]))
    with pytest.raises(ValueError, match="ascending"):
        Subset(images, np.array([0, 1]), np.array([1, 0]))


def test_string_tables():
    texts = ["", "a", "äöü", "\udcff.jpg", ""]
    table = StringTable(texts)
    assert list(table) == texts
    assert table[-2] == "\udcff.jpg"
    assert table[1:3] == ["a", "äöü"]
    with pytest.raises(IndexError):
        table[5]
    assert list(NumberNames(11))[::5] == ["00", "05", "10"]
    assert NumberNames(10)[9] == "9"
