"""Parquet as the hub writes it: built here with pyarrow, from its documented layout."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from given_images import GivenImages
from PIL import Image

from mpsoftmax.data.convert import convert
from mpsoftmax.data.inspect import inspect
from mpsoftmax.data.open import open_images


def png(number):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


def hub_metadata(names, column="label"):
    features = {column: {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write(path, labels, names=None, *, first=0, group=3, plain=False, column="label", kind=None):
    images = [png(first + k) for k in range(len(labels))]
    if not plain:
        images = [{"bytes": one, "path": f"{first + k}.png"} for k, one in enumerate(images)]
    image_type = (
        pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({"image": pa.array(images, image_type), column: pa.array(labels, kind)})
    if names is not None:
        table = table.replace_schema_metadata(hub_metadata(names, column))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


def contents(images):
    return (
        list(images.class_names),
        images.labels.tolist(),
        [images.image(k) for k in range(len(images))],
    )


def test_one_file_with_class_names_and_an_ignored_row(tmp_path):
    write(tmp_path / "a.parquet", [2, 0, -1, 1, 2, 0, 0], ["cat", "dog", "eel"])
    images = open_images(tmp_path / "a.parquet")
    expected = (["cat", "dog", "eel"], [2, 0, -1, 1, 2, 0, 0], [png(k) for k in range(7)])
    assert contents(images) == expected
    assert images.group_starts.tolist() == [0, 3, 6, 7]
    assert images.name(4).endswith("a.parquet: row 4")
    assert contents(pickle.loads(pickle.dumps(images))) == expected


def test_plain_binary_text_labels_and_other_columns_by_name(tmp_path):
    write(tmp_path / "a.parquet", ["b", "a", "10", "9"], plain=True)
    assert contents(open_images(tmp_path / "a.parquet"))[:2] == (
        ["10", "9", "a", "b"],
        [3, 2, 0, 1],
    )
    write(tmp_path / "b.parquet", [1, 0], column="fine", kind=pa.int32())
    assert contents(open_images(tmp_path / "b.parquet"))[:2] == (["0", "1"], [1, 0])
    table = pq.read_table(tmp_path / "b.parquet").append_column("coarse", pa.array([0, 5]))
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(
        ValueError, match="columns are image, fine, coarse; say which with label_col"
    ):
        open_images(tmp_path / "c.parquet")
    assert open_images(tmp_path / "c.parquet", label_column="coarse").labels.tolist() == [0, 5]


def test_folder_of_shards_by_split_and_a_glob(tmp_path):
    folder = tmp_path / "repo" / "data"
    for k, labels in enumerate(([0, 1], [2, 2, 0])):
        write(folder / f"train-0000{k}-of-00002.parquet", labels, ["x", "y", "z"], first=10 * k)
    (tmp_path / "repo/README.md").write_text("a card")
    expected = (["x", "y", "z"], [0, 1, 2, 2, 0], [png(k) for k in (0, 1, 10, 11, 12)])
    assert contents(open_images(folder)) == expected
    write(folder / "test-00000-of-00001.parquet", [1], ["x", "y", "z"], first=50)
    with pytest.raises(ValueError, match=r"holds test, train; say which one with under"):
        open_images(folder)
    assert contents(open_images(tmp_path / "repo", under="train")) == expected
    images = open_images(f"{folder}/train-*.parquet")
    assert contents(images) == expected
    assert images.name(3).endswith("train-00001-of-00002.parquet: row 1")
    assert contents(open_images(f"{folder}/train-0000{{0..1}}-of-00002.parquet")) == expected
    (folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"shard 00000 of train-\*-of-00002 is missing"):
        open_images(folder, under="train")


def test_shards_of_different_sets_are_refused(tmp_path):
    write(tmp_path / "a.parquet", [0], ["x"])
    write(tmp_path / "b.parquet", [0], ["y"])
    with pytest.raises(ValueError, match=r"b\.parquet: columns and class names of .*a\.parquet"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 3], ["x", "y"], r"label 3 of .*row 1 is out of range: expected 0\.\.1"),
        ([0, -2], ["x", "y"], r"label -2 of .*row 1 is out of range"),
        ([0, None], None, "labels without nulls expected, found 1"),
        ([0.5, 1.0], None, "integer or text expected, found double"),
        ([], None, "expected"),
    ],
)
def test_bad_labels(tmp_path, labels, names, message):
    write(tmp_path / "a.parquet", labels, names)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "a.parquet")
    if names:
        report = inspect(tmp_path / "a.parquet")
        assert [one.kind for one in report.problems][:1] == ["labels out of range"]


def test_a_row_without_bytes_and_damaged_files(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "/home/me/a.png"}]
    pq.write_table(
        pa.table({"image": pa.array(rows, kind), "label": [0, 1]}), tmp_path / "a.parquet"
    )
    images = open_images(tmp_path / "a.parquet")
    assert images.image(0) == b"x"
    with pytest.raises(
        ValueError, match=r"row 1: image bytes expected in 'image\.bytes', found null"
    ):
        images.image(1)
    write(tmp_path / "b.parquet", list(range(40)))
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"b\.parquet: Parquet file expected"):
        open_images(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"\0" * 200 + whole[200:])
    damaged = open_images(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: row group 0 expected, damaged"):
        damaged.image(0)


def test_converting_there_and_back_is_exact(tmp_path):
    images = GivenImages(
        [png(k) for k in range(250)], [k % 7 - 1 for k in range(250)], list("abcdef")
    )
    done = convert(images, tmp_path / "a.parquet")
    assert done.format == "parquet"
    back = open_images(tmp_path / "a.parquet")
    assert contents(back) == contents(images)
    assert back.group_starts.tolist() == [0, 100, 200, 250]
    names = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"huggingface"])
    assert names["info"]["features"]["label"] == {"names": list("abcdef"), "_type": "ClassLabel"}
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    whole[whole.find(png(4)) + 40] ^= 1  # pages that we write have a sum
    (tmp_path / "c.parquet").write_bytes(whole)
    with pytest.raises(ValueError, match=r"c\.parquet: row group 0 expected, damaged"):
        open_images(tmp_path / "c.parquet").image(0)
    convert(tmp_path / "a.parquet", tmp_path / "b.arrow")
    assert contents(open_images(tmp_path / "b.arrow")) == contents(images)
    assert inspect(tmp_path / "a.parquet").format == "parquet"
