"""Damaged files of every format: ValueError with the file's name, never another exception."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from given_images import GivenImages

from mpsoftmax.data.arrow_output import write_arrow
from mpsoftmax.data.convert import convert
from mpsoftmax.data.open import open_images
from mpsoftmax.data.pairs import read_bin

MAGIC = b"\x0a\x23\xd7\xce"


IMAGES = (b"first", MAGIC + b"x" * 60, b"third image" * 3, b"z" * 33)
SET = GivenImages(IMAGES, [0, 0, 1, 2], ("p", "q", "r"))


def read_all(path):
    images = open_images(path)
    return [images.image(i) for i in range(len(images))]


def refusal(path, read):
    try:
        read(path)
    except ValueError as error:
        return error
    return None


def is_refused(path, read=read_all):
    """True for a ValueError that names the file; other exceptions go through and fail the test."""
    error = refusal(path, read)
    if error is not None:
        assert type(error) is ValueError, f"{type(error)} instead of a plain ValueError"
        assert path.stem in str(error)
    return error is not None


def flips(data):
    """Copies with one byte changed each: its lowest bit, its highest bit and all bits in turn."""
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= (1, 128, 255)[position % 3]
        yield position, bytes(changed)


@pytest.fixture(params=["insightface", "im2rec"])
def rec(request, tmp_path):
    convert(SET, tmp_path / "a.rec", style=request.param)
    return tmp_path / "a.rec"


def test_rec_truncated(rec):
    data = rec.read_bytes()
    for length in range(len(data)):
        rec.write_bytes(data[:length])
        assert is_refused(rec), length


def test_rec_truncated_without_index(rec):
    offsets = [
        int(line.split(b"\t")[1]) for line in rec.with_suffix(".idx").read_bytes().splitlines()
    ]
    rec.with_suffix(".idx").unlink()
    data = rec.read_bytes()
    for length in range(len(data)):
        rec.write_bytes(data[:length])
        # Between two records nothing in the format can tell.
        assert is_refused(rec) or length in offsets, length


def length_fields(data):
    """Positions of the length words of all parts."""
    position = 0
    while position < len(data):
        yield position + 4
        length = struct.unpack_from("<I", data, position + 4)[0] & (1 << 29) - 1
        position += 8 + length + -length % 4


@pytest.mark.parametrize("index", [True, False], ids=["idx", "no idx"])
def test_rec_length_and_magic_fields(rec, index):
    if not index:
        rec.with_suffix(".idx").unlink()
    data = rec.read_bytes()
    for field in length_fields(data):
        old = struct.unpack_from("<I", data, field)[0]
        for bit in range(32):
            new = old ^ 1 << bit
            if bit < 2 and (old + 3) // 4 == (new + 3) // 4:
                continue  # same padded length: the format cannot tell
            rec.write_bytes(data[:field] + struct.pack("<I", new) + data[field + 4 :])
            assert is_refused(rec), (field, bit)
        rec.write_bytes(data[: field - 4] + b"\x0a\x23\xd7\xcf" + data[field:])
        assert is_refused(rec), field


def test_rec_any_byte(rec):
    data = rec.read_bytes()
    for position, changed in flips(data):
        rec.write_bytes(changed)
        is_refused(rec)
        if data[position : position + 4] == MAGIC:
            assert is_refused(rec)


def test_rec_label_count_field(tmp_path):
    for flag in (2, 3, 1 << 16, (1 << 32) - 1):
        body = struct.pack("<IfQQ", flag, 0.0, 0, 0) + b"1234567"
        (tmp_path / "a.rec").write_bytes(MAGIC + struct.pack("<I", len(body)) + body + b"\0")
        assert is_refused(tmp_path / "a.rec"), flag
    short = struct.pack("<IfQ", 0, 0.0, 0)
    (tmp_path / "a.rec").write_bytes(MAGIC + struct.pack("<I", len(short)) + short)
    with pytest.raises(ValueError, match="24 bytes expected, found 16"):
        read_all(tmp_path / "a.rec")


def test_rec_record_of_too_many_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("mpsoftmax.data.record_io.MAX_RECORD_BYTES", 63)
    part = bytes(24)
    parts = [MAGIC + struct.pack("<I", cflag << 29 | 24) + part for cflag in (1, 2, 3)]
    (tmp_path / "a.rec").write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match="record part"):
        read_all(tmp_path / "a.rec")


def test_idx_truncated_and_changed(rec):
    idx = rec.with_suffix(".idx")
    data = idx.read_bytes()
    for length in range(len(data)):
        idx.write_bytes(data[:length])
        assert is_refused(rec), length
    for position, changed in flips(data):
        idx.write_bytes(changed)
        line = data[data.rfind(b"\n", 0, position) + 1 :]
        in_key = position - (len(data) - len(line)) < line.index(b"\t")
        # A key may become another valid one: the images stay the same.
        assert is_refused(rec) or (in_key and read_all(rec) == list(IMAGES)), changed


@pytest.mark.parametrize(
    "line",
    [
        "1 2\n",
        "1\t2\t3\n",
        "a\tb\n",
        "1\t\n",
        "\n",
        "1\t0.0\n",
        '"1"\t0\n',
        "9" * 30 + "\t0\n",
        "1\t-4\n",
        "1\t3\n",
        "1\t99999999\n",
    ],
)
def test_idx_lines(rec, line):
    rec.with_suffix(".idx").write_text(line)
    assert is_refused(rec)
    with pytest.raises(ValueError, match=r"not in the index|expected"):
        read_all(rec)


def test_rec_side_files(rec):
    names = rec.with_suffix(".classes.json")
    data = names.read_bytes()
    for length in range(len(data.strip())):
        names.write_bytes(data[:length])
        assert is_refused(rec), length
    for text in ("{}", "3", "[1]", "[" * 99_999, '["p", "q"]'):
        names.write_text(text)
        assert is_refused(rec), text[:9]


@pytest.fixture(params=[tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def tar(request, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=request.param) as archive:
        for name, size in (
            ("a/1.jpg", 700),
            ("a/é.jpg", 5),
            ("b" * 60 + "/" + "n" * 80 + ".jpg", 512),
        ):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(b"x" * size))
        end = archive.offset
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: end + 1024])
    return tmp_path / "a.tar", end


def test_tar_truncated(tar):
    path, end = tar
    data = path.read_bytes()
    for length in [*range(0, end, 64), *range(end, end + 512, 50), end + 511]:
        path.write_bytes(data[:length])
        assert is_refused(path), length
    path.write_bytes(data[: end + 512])
    assert len(read_all(path)) == 3


def headers(data, end):
    position = 0
    while position < end:
        yield position
        size = int(data[position + 124 : position + 135], 8)
        position += 512 + -(-size // 512) * 512


def test_tar_header_bytes(tar):
    """A flipped header bit is found by the checksum, in the middle of the archive as well."""
    path, end = tar
    data = path.read_bytes()
    for start in headers(data, end):
        for position in range(start, start + 512, 5):
            if start + 148 <= position < start + 156:
                continue  # the checksum itself: may become the same number written otherwise
            changed = bytearray(data)
            changed[position] ^= (1, 128, 255)[position % 3]
            path.write_bytes(changed)
            assert is_refused(path), position


@pytest.mark.parametrize(
    "size",
    [
        b"77777777777\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"-0000000010\0",
        b"0x00000010 \0",
        b"9" * 11 + b"\0",
        b"\0" * 12,
    ],
)
def test_tar_size_field(tar, size):
    path, end = tar
    data = path.read_bytes()
    for start in headers(data, end):
        changed = bytearray(data)
        changed[start + 124 : start + 136] = size
        changed[start + 148 : start + 156] = b" " * 8
        changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
        path.write_bytes(changed)
        assert is_refused(path), start


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"0 path=x\n",
        b"-3 path=x\n",
        b"99 path=x\n",
        b"9 path=x!",
        b"7 path\n",
        b"x path=x\n",
        b"9" * 60 + b" path=x\n",
        b"12 size=abc\n",
        b"11 size=-1\n",
        b"20 size=99999999999\n",
    ],
)
def test_tar_pax_records(tmp_path, record):
    def header(name, size, kind):
        block = bytearray(512)
        block[: len(name)], block[124:136] = name, b"%011o\0" % size
        block[156:157], block[148:156] = kind, b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    path = tmp_path / "a.tar"
    pax = header(b"pax", len(record), b"x") + (record + bytes(-len(record) % 512))
    path.write_bytes(pax + header(b"a/1.jpg", 3, b"0") + b"abc".ljust(512, b"\0") + bytes(1024))
    assert is_refused(path) or (record == b"" and read_all(path) == [b"abc"])


def test_tar_other_content(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a/1.jpg"))
    with pytest.raises(ValueError, match=r"a\.tar: compressed with gzip; allowed"):
        read_all(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ValueError, match=r"a\.tar: tar header at offset 0"):
        read_all(path)
    convert(SET, tmp_path / "b.tar")
    path.write_bytes((tmp_path / "b.tar").read_bytes() * 2)
    with pytest.raises(ValueError, match="joined archives"):
        read_all(path)


@pytest.fixture
def arrow(tmp_path, monkeypatch):
    monkeypatch.setattr("mpsoftmax.data.arrow_output.BATCH_ROWS", 3)
    write_arrow(tmp_path / "a.arrow", SET)
    return tmp_path / "a.arrow"


def test_arrow_truncated(arrow):
    data = arrow.read_bytes()
    for length in [*range(0, len(data), 3), *range(len(data) - 20, len(data))]:
        arrow.write_bytes(data[:length])
        assert is_refused(arrow), length


def test_arrow_footer_length(arrow):
    data = arrow.read_bytes()
    for length in (0, 1, len(data), len(data) + 1, 1 << 30, (1 << 31) - 1, -1, -(1 << 31)):
        arrow.write_bytes(data[:-10] + struct.pack("<i", length) + data[-6:])
        assert is_refused(arrow), length


def test_arrow_any_byte(arrow):
    data = arrow.read_bytes()
    refused = 0
    for _, changed in flips(data):
        arrow.write_bytes(changed)
        refused += is_refused(arrow)
    assert refused > len(data) / 6


def test_arrow_offsets_of_images(tmp_path):
    """Offsets that point out of the data buffer must not read foreign memory."""
    path = tmp_path / "a.arrow"
    columns = {
        "image": pa.array([b"12345", b"678"], pa.large_binary()),
        "label": pa.array([0, 1], pa.int64()),
    }
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    data, offsets = path.read_bytes(), struct.pack("<3q", 0, 5, 8)
    assert data.count(offsets) == 1
    for wrong in ((0, 5, 1 << 40), (0, -5, 8), (0, 9, 8), (-(1 << 40), 0, 8), (0, 0, 9_000)):
        path.write_bytes(data.replace(offsets, struct.pack("<3q", *wrong)))
        assert is_refused(path), wrong


def test_arrow_stream_instead_of_file(tmp_path):
    batch = pa.record_batch({"image": pa.array([b"x"]), "label": pa.array([0], pa.int64())})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    with pytest.raises(ValueError, match=r"Arrow IPC file expected"):
        read_all(tmp_path / "a.arrow")


def bins():
    items = [b"one", b"two", b"\xff\xd8three", b""]
    arrays = [np.frombuffer(item, np.uint8)[:, None] for item in items]
    yield pickle.dumps(([*items[:3], b"long" * 70], [True, False]), 4)
    yield pickle.dumps((arrays, [np.bool_(True), np.bool_(False)]), 3)
    yield pickle.dumps((arrays, [True, False]), 2)
    yield pickle.dumps((items, [True, False]), 0)


@pytest.mark.parametrize("number", range(4))
def test_bin_truncated_and_changed(tmp_path, number):
    data = list(bins())[number]
    path = tmp_path / "a.bin"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert is_refused(path, read_bin), length
    for _, changed in flips(data):
        path.write_bytes(changed)
        is_refused(path, read_bin)
    path.write_bytes(data + b"more")
    assert is_refused(path, read_bin)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",  # BINBYTES8 of 4 EB
        b"\x80\x04B" + struct.pack("<I", 0xFFFFFFFF) + b"x.",  # BINBYTES of 4 GB
        b"\x80\x02T" + struct.pack("<i", -1) + b"x.",  # BINSTRING of negative length
        b"\x80\x02T" + struct.pack("<i", (1 << 31) - 1) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",  # FRAME
        b"\x80\x02]r" + struct.pack("<I", 0xFFFFFFFF) + b".",  # memo table of 64 GB
        b"\x80\x02]p999999999999\n.",
        b"\x80\x02h\x07.",  # memo never set
        b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b".",  # LONG4
        b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",  # nested lists
        b"\x80\x02}.",  # a dict
        b"\x80\x09N.",  # protocol 9
        b"0.",  # empty stack
        b"",
        b"\xff\xd8\xff\xe0 a JPEG",
    ],
)
def test_bin_lengths(tmp_path, data):
    (tmp_path / "a.bin").write_bytes(data)
    assert is_refused(tmp_path / "a.bin", read_bin)
