"""RecordIO read and written, against bytes laid out by hand from the format's description."""

import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsoftmax.data import record_io
from mpsoftmax.data.convert import convert
from mpsoftmax.data.record_images import open_records
from mpsoftmax.data.record_index import read_index
from mpsoftmax.data.record_io import RecordFile, RecordWriter
from mpsoftmax.data.record_output import _write_identities

MAGIC = b"\x0a\x23\xd7\xce"
TWO_24 = 1 << 24


def part(cflag, payload):
    return (
        MAGIC
        + struct.pack("<I", cflag << 29 | len(payload))
        + payload
        + b"\0" * (-len(payload) % 4)
    )


def hand_record(record):
    """The record as parts, byte by byte from the description, without our writer."""
    pieces, at, aligned = [b""], 0, len(record) // 4 * 4
    while at < len(record):
        if at % 4 == 0 and at + 4 <= aligned and record[at : at + 4] == MAGIC:
            pieces.append(b"")
            at += 4
        else:
            pieces[-1] += record[at : at + 1]
            at += 1
    if len(pieces) == 1:
        return part(0, pieces[0])
    middle = b"".join(part(2, piece) for piece in pieces[1:-1])
    return part(1, pieces[0]) + middle + part(3, pieces[-1])


def body(labels, payload=b"", record_id=0):
    """flag 0 for a number, flag k for a list of k."""
    if isinstance(labels, list):
        header = struct.pack("<IfQQ", len(labels), 0.0, record_id, 0)
        return header + struct.pack(f"<{len(labels)}f", *labels) + payload
    return struct.pack("<IfQQ", 0, labels, record_id, 0) + payload


def write_set(folder, records, name="train", index=True):
    """``records``: (key, body); returns the path of the .rec."""
    rec, lines = b"", []
    for key, record in records:
        lines.append(f"{key}\t{len(rec)}\n")
        rec += hand_record(record)
    (folder / f"{name}.rec").write_bytes(rec)
    if index:
        (folder / f"{name}.idx").write_text("".join(lines))
    return folder / f"{name}.rec"


def insightface(images, first_key=1):
    """Records of an InsightFace set; ``images``: (labels, payload), contiguous by class."""
    records = [(first_key + i, body(label, data)) for i, (label, data) in enumerate(images)]
    classes = [label[0] if isinstance(label, list) else label for label, _ in images]
    starts = [i for i, c in enumerate(classes) if i == 0 or classes[i - 1] != c]
    stops = [*starts[1:], len(images)]
    after = first_key + len(images)
    records.append((0, body([float(after), float(after + len(starts))])))
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        bounds = [float(first_key + start), float(first_key + stop)]
        records.append((after + number, body(bounds)))
    return records


def contents(images):
    return [(int(images.labels[i]), images.image(i)) for i in range(len(images))]


RECORDS = [
    b"",
    b"a",
    b"abcd",
    b"abcde",
    MAGIC,
    MAGIC * 3,
    b"abcd" + MAGIC + b"ef",
    b"abc" + MAGIC + b"e",  # not at a multiple of 4: stays whole
    b"abcd" + MAGIC[:3],
    MAGIC + b"x" + MAGIC + b"yzw" + MAGIC,
]


def test_container_reads_hand_built_records(tmp_path):
    path = write_set(tmp_path, list(enumerate(RECORDS)))
    records = RecordFile(path)
    keys, offsets = read_index(path.with_suffix(".idx"))
    assert keys.tolist() == list(range(len(RECORDS)))
    assert [records.read(offset) for offset in offsets.tolist()] == RECORDS
    assert list(records.scan()) == offsets.tolist()


def test_container_writes_the_described_bytes(tmp_path):
    path = write_set(tmp_path, [(7 * i, record) for i, record in enumerate(RECORDS)])
    with RecordWriter(tmp_path / "own.rec", tmp_path / "own.idx") as writer:
        for number, record in enumerate(RECORDS):
            writer.write(7 * number, record)
    assert (tmp_path / "own.rec").read_bytes() == path.read_bytes()
    assert (tmp_path / "own.idx").read_bytes() == path.with_suffix(".idx").read_bytes()


@given(st.lists(st.lists(st.sampled_from([MAGIC, b"\0", b"xy", MAGIC[1:], b"abcd"])), max_size=6))
def test_container_round_trip(tmp_path_factory, blocks):
    folder = tmp_path_factory.mktemp("rec")
    written = [b"".join(block) for block in blocks]
    with RecordWriter(folder / "a.rec", folder / "a.idx") as writer:
        for key, record in enumerate(written):
            writer.write(key, record)
    assert (folder / "a.rec").read_bytes() == b"".join(map(hand_record, written))
    records = RecordFile(folder / "a.rec")
    assert [records.read(offset) for offset in records.scan()] == written


def test_writer_refuses_a_record_the_length_field_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(record_io, "MAX_RECORD_BYTES", 15)
    with RecordWriter(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        writer.write(0, bytes(15))
        with pytest.raises(ValueError, match="record 1 has 16 bytes"):
            writer.write(1, bytes(16))


IMAGES = [
    ([0.0, 1.0], b"first"),
    ([0.0, 0.0], MAGIC + b"in"),
    ([2.0, 0.0], b"x" * 9),
    (1.0, b"12345678"),
]


@pytest.mark.parametrize("index", [True, False], ids=["idx", "no idx"])
def test_insightface_style(tmp_path, index):
    # The last image has a scalar label and 8 bytes: a part of 32 bytes, as an identity record has.
    path = write_set(tmp_path, insightface(IMAGES), index=index)
    images = open_records(path)
    assert images.style == "insightface"
    assert contents(images) == [(0, b"first"), (0, MAGIC + b"in"), (2, b"x" * 9), (1, b"12345678")]
    assert images.keys.tolist() == [1, 2, 3, 4]
    assert list(images.class_names) == ["0", "1", "2"]
    assert images.problems == ()
    assert "record 2" in images.name(1)
    assert str(path) in images.name(1)


@pytest.mark.parametrize("index", [True, False], ids=["idx", "no idx"])
def test_im2rec_style(tmp_path, index):
    # Keys neither sorted nor contiguous; a label vector with a payload under key 0; no bytes.
    records = [
        (9, body(1.0, b"nine")),
        (0, body([2.0, 5.0, 7.0], b"zero")),
        (4, body(0.0, b"")),
        (5, body(-1.0, MAGIC)),
    ]
    images = open_records(write_set(tmp_path, records, "any", index=index))
    assert images.style == "im2rec"
    assert contents(images) == [(1, b"nine"), (2, b"zero"), (0, b""), (-1, MAGIC)]
    assert images.keys.tolist() == ([9, 0, 4, 5] if index else [0, 1, 2, 3])


def test_magic_inside_the_record_header(tmp_path):
    record_id = 0xCED7230A  # lies at byte 8 of the body: the record is split inside its header
    path = write_set(
        tmp_path, [(0, body(3.0, b"img", record_id)), (1, body([1.0], b"b", record_id))]
    )
    assert path.read_bytes().count(struct.pack("<I", 1 << 29 | 8)) == 2
    assert contents(open_records(path)) == [(3, b"img"), (1, b"b")]


def test_keys_and_ranges_above_2_24(tmp_path):
    """float32 ranges there are wrong; index and bytes are right."""
    first = TWO_24 + 1
    images = [([0.0, 0.0], b"a"), ([0.0, 0.0], b"b"), ([1.0, 0.0], b"c"), ([1.0, 0.0], b"d")]
    records = insightface(images, first_key=first)
    ranges = np.frombuffer(records[-1][1], "<f4", offset=24)
    assert ranges.tolist() != [first + 2, first + 4], "the example must be one that float32 breaks"
    images = open_records(write_set(tmp_path, records))
    assert contents(images) == [(0, b"a"), (0, b"b"), (1, b"c"), (1, b"d")]
    assert images.keys.tolist() == [first, first + 1, first + 2, first + 3]


def test_ranges_above_2_24_are_written_as_nearest_float32():
    labels = np.zeros(TWO_24 + 2, dtype=np.int8)
    labels[-1] = 1
    written = []

    class Writer:
        def write(self, key, record):
            written.append((key, np.frombuffer(record, "<f4", offset=24).tolist()))

    _write_identities(Writer(), labels)
    assert written == [
        (0, [TWO_24 + 4, TWO_24 + 4]),  # true: 2^24 + 3 and + 5; ties go to the even mantissa
        (TWO_24 + 3, [1, TWO_24 + 2]),
        (TWO_24 + 4, [TWO_24 + 2, TWO_24 + 4]),  # true: + 2 and + 3
    ]


def test_wrong_header_ranges_are_reported_not_used(tmp_path):
    records = insightface(IMAGES)
    records[4] = (0, body([3.0, 4.0]))
    images = open_records(write_set(tmp_path, records))
    assert len(images) == 4
    assert len(images.problems) == 1
    assert "4 images and 3 identities" in images.problems[0]


def test_property_states_the_number_of_classes(tmp_path):
    path = write_set(tmp_path, insightface(IMAGES))
    (tmp_path / "property").write_text("5,112,112\n4\n")
    images = open_records(path)
    assert len(images.class_names) == 5
    assert "5 classes stated, labels need 3" in images.problems[0]
    (tmp_path / "property").write_text("2,112,112\n")
    with pytest.raises(ValueError, match=r"label 2 of .*record 3 .*0\.\.1"):
        open_records(path)
    (tmp_path / "property").write_text("many\n")
    with pytest.raises(ValueError, match=r"property: .*num_classes,height,width"):
        open_records(path)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (float("nan"), "label nan"),
        (float("inf"), "label inf"),
        (0.5, r"label 0\.5"),
        (float(TWO_24 + 2), "label 16777218"),
        (-2.0, "label -2 of .*record 3 "),
    ],
)
def test_bad_labels_name_the_record(tmp_path, label, message):
    path = write_set(tmp_path, [(0, body(0.0, b"a")), (3, body(label, b"b"))])
    with pytest.raises(ValueError, match=message) as error:
        open_records(path)
    assert "record 3" in str(error.value)


def test_records_missing_from_the_index(tmp_path):
    path = write_set(tmp_path, [(i, body(float(i), b"%d" % i)) for i in range(5)])
    lines = path.with_suffix(".idx").read_text().splitlines(keepends=True)
    path.with_suffix(".idx").write_text(lines[3] + lines[1])
    with pytest.raises(ValueError, match=r"3 records of .* are not in the index"):
        open_records(path)
    images = open_records(path, allow_unindexed=True)
    assert contents(images) == [(3, b"3"), (1, b"1")]


class LabelledImages:
    def __init__(self, labels, payloads):
        self.labels, self.payloads = np.array(labels, dtype=np.int64), payloads
        self.class_names = [f"class {i}" for i in range(max(labels) + 1)]

    def __len__(self):
        return len(self.labels)

    def image(self, index):
        return self.payloads[index]

    def name(self, index):
        return f"image {index}"


def test_writer_insightface_style_bytes(tmp_path):
    """Our file, read by the description alone."""
    payloads = [b"abc", MAGIC * 2 + b"d", b"e", b"f"]
    convert(LabelledImages([1, 1, -1, 0], payloads), tmp_path / "train.rec", style="insightface")
    labels = [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]
    expected = [
        (i + 1, body(label, data, i + 1))
        for i, (label, data) in enumerate(zip(labels, payloads, strict=True))
    ]
    expected.append((0, body([5.0, 7.0])))
    expected += [(5, body([1.0, 3.0], b"", 5)), (6, body([4.0, 5.0], b"", 6))]
    (tmp_path / "hand").mkdir()
    hand = write_set(tmp_path / "hand", expected)
    for suffix in (".rec", ".idx"):
        ours = (tmp_path / "train.rec").with_suffix(suffix)
        assert ours.read_bytes() == hand.with_suffix(suffix).read_bytes()
    assert json.loads((tmp_path / "train.classes.json").read_text()) == ["class 0", "class 1"]
    images = open_records(tmp_path / "train.rec")
    assert contents(images) == list(zip([1, 1, -1, 0], payloads, strict=True))
    assert list(images.class_names) == ["class 0", "class 1"]
    assert images.problems == ()


def test_writer_im2rec_style_bytes(tmp_path):
    convert(LabelledImages([1, 0, 1], [b"abc", b"", MAGIC]), tmp_path / "a.rec", style="im2rec")
    expected = [(0, body(1.0, b"abc", 0)), (1, body(0.0, b"", 1)), (2, body(1.0, MAGIC, 2))]
    hand = write_set(tmp_path, expected, "hand")
    assert (tmp_path / "a.rec").read_bytes() == hand.read_bytes()
    assert (tmp_path / "a.idx").read_bytes() == hand.with_suffix(".idx").read_bytes()


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.lists(st.sampled_from([MAGIC, b"q", b"abcd"]))), min_size=1
    ),
    st.booleans(),
)
@settings(max_examples=40)
def test_set_round_trip(tmp_path_factory, samples, keep_index):
    labels = [label for label, _ in samples]
    payloads = [b"".join(blocks) + b"." for _, blocks in samples]
    path = tmp_path_factory.mktemp("rec") / "a.rec"
    convert(LabelledImages([*labels, 3], [*payloads, b"end"]), path)
    if not keep_index:
        path.with_suffix(".idx").unlink()
    assert contents(open_records(path)) == list(zip([*labels, 3], [*payloads, b"end"], strict=True))


def test_what_the_format_cannot_carry_is_refused(tmp_path):
    cases = [
        (LabelledImages([0, 1, 0], [b"a"] * 3), "insightface", "not contiguous"),
        (LabelledImages([0, 1], [b"a", b""]), "insightface", "image 1: no bytes"),
        (LabelledImages([0, 1], [b"a", b"b"]), "mxnet", "style is 'mxnet'"),
    ]
    for images, style, message in cases:
        with pytest.raises(ValueError, match=message):
            convert(images, tmp_path / "a.rec", style=style)
    too_many = LabelledImages([0], [b"a"])
    too_many.class_names = range(TWO_24 + 2)
    with pytest.raises(ValueError, match=r"label 16777217: .*float32"):
        convert(too_many, tmp_path / "a.rec")
    assert list(tmp_path.iterdir()) == []


def test_largest_label_the_format_carries(tmp_path):
    images = LabelledImages([0], [b"a"])
    images.labels = np.array([TWO_24])
    images.class_names = _Names()
    convert(images, tmp_path / "a.rec")
    (tmp_path / "a.classes.json").unlink()
    assert open_records(tmp_path / "a.rec").labels.tolist() == [TWO_24]


class _Names:
    """Pretends to 2^24 + 1 names without holding them."""

    def __len__(self):
        return TWO_24 + 1

    def __iter__(self):
        return iter(())


def test_survives_pickling_after_use(tmp_path):
    images = open_records(write_set(tmp_path, insightface(IMAGES)))
    before = contents(images)
    assert contents(pickle.loads(pickle.dumps(images))) == before
