"""WebDataset shards, made with tarfile from the layout's description."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from mpsoftmax.data.convert import convert
from mpsoftmax.data.inspect import inspect
from mpsoftmax.data.open import open_images
from mpsoftmax.data.tars import open_tars


def png(number):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(images):
    return (
        list(images.class_names),
        images.labels.tolist(),
        [images.image(k) for k in range(len(images))],
    )


def shards(folder):
    for shard in range(3):
        members = {}
        for k in range(4):
            number = 4 * shard + k
            members[f"dir/{number:06d}.jpg"] = png(number)
            members[f"dir/{number:06d}.cls"] = f"{number % 5}\n".encode()
            members[f"dir/{number:06d}.seg.txt"] = b"whatever"
        tar(folder / f"shard-{shard:06d}.tar", members)


EXPECTED = (list("01234"), [k % 5 for k in range(12)], [png(k) for k in range(12)])


def test_a_folder_and_a_brace_range_of_shards(tmp_path):
    shards(tmp_path)
    images = open_images(tmp_path)
    assert contents(images) == EXPECTED
    assert images.group_starts.tolist() == [0, 4, 8, 12]
    assert images.name(5).endswith("shard-000001.tar:dir/000005")
    assert len(images.problems) == 12
    pattern = f"{tmp_path}/shard-{{000000..000002}}.tar"
    assert contents(open_images(pattern)) == EXPECTED
    assert contents(open_images(f"{tmp_path}/shard-*.tar")) == EXPECTED
    with pytest.raises(ValueError, match=r"no such file .*shard-000003\.tar"):
        open_images(f"{tmp_path}/shard-{{000000..000003}}.tar")
    assert inspect(pattern).format == "webdataset"
    convert(pattern, tmp_path / "out.parquet")
    assert contents(open_images(tmp_path / "out.parquet")) == EXPECTED


def test_many_shards_with_few_open_files(tmp_path):
    for shard in range(150):
        tar(tmp_path / f"{shard:03d}.tar", {"a.png": png(shard), "a.cls": b"0"})
    images = open_images(tmp_path)
    assert [images.image(k) for k in range(150)] == [png(k) for k in range(150)]
    assert len(images.shards._files) == 64


@pytest.mark.parametrize(
    ("labels", "key", "expected"),
    [
        ([{"label": 3}, {"label": 0}], "label", (list("0123"), [3, 0])),
        ([{"label": "tea"}, {"label": "10"}], "label", (["10", "tea"], [1, 0])),
        ([{"who": -1}, {"who": 1}], "who", (["0", "1"], [-1, 1])),
    ],
)
def test_json_labels(tmp_path, labels, key, expected):
    members = {}
    for k, label in enumerate(labels):
        members[f"{k}.json"] = json.dumps(label).encode()
        members[f"{k}.webp"] = png(k)
    path = tar(tmp_path / "a.tar", members)
    assert contents(open_images(path, label_key=key))[:2] == expected


def test_class_folders_are_told_from_shards(tmp_path):
    folders = tar(
        tmp_path / "a.tar", {"cat/1.png": png(1), "dog/1.png": png(2), "dog/2.png": png(3)}
    )
    assert contents(open_images(folders))[:2] == (["cat", "dog"], [0, 1, 1])
    both = {"cat/1.png": png(1), "cat/1.cls": b"7", "dog/1.png": png(2), "dog/1.cls": b"0"}
    labelled = tar(tmp_path / "b.tar", both)
    assert open_images(labelled).labels.tolist() == [7, 0]
    assert contents(open_images(labelled, layout="folders"))[:2] == (["cat", "dog"], [0, 1])
    mixed = tar(tmp_path / "c.tar", {**both, "eel/1.png": png(3)})
    with pytest.raises(ValueError, match=r"2 images have a .cls or .json .*, 1 have none .*eel/1"):
        open_images(mixed)
    assert contents(open_images(mixed, layout="folders"))[0] == ["cat", "dog", "eel"]
    with pytest.raises(ValueError, match=r"eel/1: no \.cls and no \.json beside the image"):
        open_images(mixed, layout="webdataset")
    with pytest.raises(ValueError, match="under='cat' is for class folders"):
        open_images(labelled, under="cat")
    flat = tar(tmp_path / "d.tar", {"1.png": png(1)})
    with pytest.raises(ValueError, match=r"neither in class folders nor with a \.cls or \.json"):
        open_images(flat)
    with pytest.raises(ValueError, match="several tars as WebDataset shards, or one tar"):
        open_tars([folders, folders])
    with pytest.raises(ValueError, match="layout: 'tree'; allowed: auto, folders, webdataset"):
        open_images(folders, layout="tree")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"1", "a.cls": b"one"}, "a.cls: a whole number expected as label, found 'one'"),
        ({"a.png": b"1", "a.cls": b"-2"}, "label -2 of .*a is out of range"),
        ({"a.png": b"1", "a.jpg": b"2", "a.cls": b"0"}, "a: one image expected, found .png, .jpg"),
        ({"a.png": b"1", "a.json": b"{"}, "a.json: JSON expected"),
        (
            {"a.png": b"1", "a.json": b'{"id": 3}'},
            "under 'label' expected, found id; say which key",
        ),
        ({"a.png": b"1", "a.json": b'{"label": 1.5}'}, "an integer or text under 'label'"),
        (
            {"a.png": b"1", "a.cls": b"1", "b.png": b"1", "b.json": b'{"label": "x"}'},
            "sample b: label 'x' beside 1: all integers or all text expected",
        ),
    ],
)
def test_bad_samples(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        open_images(tar(tmp_path / "a.tar", members))


def test_a_key_twice_in_a_shard(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "a.cls", "a.png"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"0"))
    with pytest.raises(ValueError, match=r"sample 'a' has two members \.png"):
        open_images(tmp_path / "a.tar")
