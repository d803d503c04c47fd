"""Arrow IPC files read and written."""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest

from mpsoftmax.data import arrow_output
from mpsoftmax.data.arrow import open_arrow
from mpsoftmax.data.arrow_output import write_arrow


class Images:
    def __init__(self, images, labels, class_names):
        self.images, self.class_names = images, class_names
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self):
        return len(self.images)

    def image(self, index):
        return self.images[index]

    def name(self, index):
        return f"image {index}"


def write_table(path, columns, metadata=None, batches=1):
    table = pa.table(columns).replace_schema_metadata(metadata)
    rows = -(-len(table) // batches)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_reads_a_file_of_other_origin(tmp_path, kind):
    data = [b"a", b"", b"ccc", b"\x00d", b"e"]
    columns = {
        "source": pa.array(["x"] * 5),
        "label": pa.array([1, 0, -1, 1, 0], pa.int64()),
        "image": pa.array(data, kind),
    }
    names = {b"mpsoftmax.class_names": json.dumps(["zero", "öne", "two"])}
    images = open_arrow(write_table(tmp_path / "a.arrow", columns, names, batches=3))
    assert [images.image(i) for i in (4, 0, 3, 1, 2)] == [b"e", b"a", b"\x00d", b"", b"ccc"]
    assert images.labels.tolist() == [1, 0, -1, 1, 0]
    assert list(images.class_names) == ["zero", "öne", "two"]
    assert images.name(3) == f"{tmp_path / 'a.arrow'}: row 3"
    with pytest.raises(IndexError):
        images.image(5)


def test_without_names_classes_are_numbered(tmp_path):
    columns = {"image": pa.array([b"x"] * 2, pa.binary()), "label": pa.array([10, 3], pa.int64())}
    images = open_arrow(write_table(tmp_path / "a.arrow", columns))
    assert len(images.class_names) == 11
    assert images.class_names[3] == "03"


def test_writes_batches_and_reads_them_back(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_output, "BATCH_ROWS", 4)
    monkeypatch.setattr(arrow_output, "BATCH_BYTES", 100)
    data = [bytes([i]) * (i * 7 % 50) for i in range(40)]
    labels = np.arange(40) % 3 - 1
    path = tmp_path / "a.arrow"
    write_arrow(path, Images(data, labels, ["p", "q\n\udcff"]))
    reader = pa.ipc.open_file(str(path))
    sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    assert max(sizes) == 4
    assert min(sizes[:-1]) < 4, "the byte limit must close a batch as well"
    assert reader.schema.types == [pa.large_binary(), pa.int64()]
    images = open_arrow(path)
    assert [images.image(i) for i in range(40)] == data
    assert images.labels.tolist() == labels.tolist()
    assert list(images.class_names) == ["p", "q\n\udcff"]


def test_a_shuffled_read_copies_no_record_batch(tmp_path, monkeypatch):
    """Training jumps between record batches: an image must not cost a copy of the one it lies in."""
    monkeypatch.setattr(arrow_output, "BATCH_ROWS", 4)
    data = [bytes([i]) * 50_000 for i in range(12)]
    write_arrow(tmp_path / "a.arrow", Images(data, [0] * 12, ["p"]))
    images = open_arrow(tmp_path / "a.arrow")
    assert images.image(0) == data[0]
    before = pa.total_allocated_bytes()
    for index in (11, 2, 7, 3, 9):
        assert images.image(index) == data[index]
        assert pa.total_allocated_bytes() - before < 50_000


def test_more_classes_than_float32_counts(tmp_path):
    columns = {
        "image": pa.array([b"x"] * 2, pa.binary()),
        "label": pa.array([(1 << 24) + 1, 1 << 24], pa.int64()),
    }
    images = open_arrow(write_table(tmp_path / "a.arrow", columns))
    assert images.labels.tolist() == [16_777_217, 16_777_216]


IMAGE = pa.array([b"x", b"y"], pa.binary())
LABEL = pa.array([0, 1], pa.int64())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": LABEL}, "'image' of type binary or large_binary"),
        ({"image": IMAGE}, "'label' of type int64"),
        ({"image": IMAGE, "label": LABEL.cast(pa.int32())}, r"int64 expected, found \['int32'\]"),
        ({"image": IMAGE.cast(pa.string()), "label": LABEL}, r"found \['string'\]"),
        ({"image": IMAGE, "label": pa.array([0, None], pa.int64())}, "label without nulls"),
        ({"image": IMAGE, "label": pa.array([0, -2], pa.int64())}, "label -2 of .*row 1"),
        ({"image": IMAGE[:0], "label": LABEL[:0]}, "holds no images"),
    ],
)
def test_wrong_columns_are_named(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message) as error:
        open_arrow(write_table(tmp_path / "a.arrow", columns))
    assert "a.arrow" in str(error.value)


def test_null_images_and_bad_names(tmp_path):
    columns = {"image": pa.array([b"x", None], pa.binary()), "label": LABEL}
    images = open_arrow(write_table(tmp_path / "a.arrow", columns))
    with pytest.raises(ValueError, match="image without nulls"):
        images.image(0)
    for names in ("nonsense", '{"a": 1}', "[1, 2]", "[" * 100_000):
        path = write_table(
            tmp_path / "b.arrow",
            {"image": IMAGE, "label": LABEL},
            {b"mpsoftmax.class_names": names},
        )
        with pytest.raises(ValueError, match="JSON list of class names"):
            open_arrow(path)
    path = write_table(
        tmp_path / "c.arrow", {"image": IMAGE, "label": LABEL}, {b"mpsoftmax.class_names": '["a"]'}
    )
    with pytest.raises(ValueError, match=r"label 1 of .*row 1 .*0\.\.0"):
        open_arrow(path)


def test_handles_survive_pickling_and_forking(tmp_path):
    write_arrow(tmp_path / "a.arrow", Images([b"a", b"b"], [0, 1], ["p", "q"]))
    images = open_arrow(tmp_path / "a.arrow")
    assert images.image(1) == b"b"
    assert pickle.loads(pickle.dumps(images)).image(1) == b"b"
    child = os.fork()
    if child == 0:
        os._exit(0 if images.image(0) == b"a" and images.image(1) == b"b" else 1)
    assert os.waitpid(child, 0)[1] == 0
