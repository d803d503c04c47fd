"""The headers of all records of a .rec file at once, and the check that the records fit together.

40 bytes a record are gathered with NumPy from a memory map: 42 million Python-level reads would
take minutes in every process that opens the set.
"""

from dataclasses import dataclass

import numpy as np

from mpsoftmax.data.record_io import (
    HEADER_BYTES,
    LENGTH_BITS,
    MAGIC,
    MAX_RECORD_BYTES,
    RecordFile,
    unpack_body,
)

_CHUNK = 1 << 16
_PART_BYTES = 8
_WINDOW = _PART_BYTES + HEADER_BYTES + 4


@dataclass(frozen=True, eq=False)
class BodyTable:
    """What the headers of n records say.

    Attributes:
        label: float32 [n], label element 0.
        is_vector: bool [n], flag > 0.
        payload_bytes: int64 [n], bytes after header and labels.
        num_unindexed: Records of the file that the index leaves out.
    """

    label: np.ndarray
    is_vector: np.ndarray
    payload_bytes: np.ndarray
    num_unindexed: int


def read_bodies(records: RecordFile, keys: np.ndarray, offsets: np.ndarray) -> BodyTable:
    """Check every indexed record and read its header.

    Args:
        records: The file.
        keys: int64 [n], for messages.
        offsets: int64 [n].

    Raises:
        ValueError: An offset outside the file, a malformed record, records that overlap, or bytes
            between them that are no records.
    """
    size = records.file.size
    bad = np.flatnonzero((offsets < 0) | (offsets > size - _PART_BYTES) | (offsets % 4 != 0))
    if len(bad):
        raise ValueError(
            f"{records.path}: offset {offsets[bad[0]]} of record {keys[bad[0]]}: expected a"
            f" multiple of 4 inside the file's {size} bytes"
        )
    n = len(keys)
    label, flag = np.zeros(n, np.float32), np.zeros(n, np.int64)
    length, ends = np.zeros(n, np.int64), np.zeros(n, np.int64)
    data = np.memmap(records.path, dtype=np.uint8, mode="r") if n else np.zeros(0, np.uint8)
    for start in range(0, n, _CHUNK):
        part = slice(start, min(start + _CHUNK, n))
        columns = _whole_records(data, offsets[part])
        label[part], flag[part], length[part], ends[part], slow = columns
        for i in (np.flatnonzero(slow) + start).tolist():
            label[i], flag[i], length[i], ends[i] = _read_one(
                records, int(keys[i]), int(offsets[i])
            )
    return BodyTable(
        label=label,
        is_vector=flag > 0,
        payload_bytes=length - HEADER_BYTES - 4 * flag,
        num_unindexed=_count_unindexed(records, offsets, ends),
    )


def _whole_records(
    data: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Label, flag, length, end of unsplit records, and which records need the slow way.

    Split and malformed records go the slow way, which puts them together or says what is wrong.
    """
    window = np.minimum(offsets[:, None] + np.arange(_WINDOW), len(data) - 1)
    words = data[window].view("<u4")  # [m, 9]: magic, length, flag, label, id, id2, first label
    length = (words[:, 1] & np.uint32(MAX_RECORD_BYTES)).astype(np.int64)
    flag = words[:, 2].astype(np.int64)
    ends = offsets + _PART_BYTES + length + -length % 4
    fine = (
        (words[:, 0] == int.from_bytes(MAGIC, "little"))
        & (words[:, 1] >> LENGTH_BITS == 0)
        & (length >= HEADER_BYTES + 4 * flag)
        & (ends <= len(data))
    )
    label = np.where(flag == 0, words[:, 3], words[:, 8]).astype("<u4").view("<f4")
    return label, flag, length, ends, ~fine


def _read_one(records: RecordFile, key: int, offset: int) -> tuple[float, int, int, int]:
    body = records.read(offset)
    labels, start = unpack_body(body, f"{records.path}: record {key} (offset {offset})")
    return float(labels[0]), (start - HEADER_BYTES) // 4, len(body), records.end(offset)


def _count_unindexed(records: RecordFile, offsets: np.ndarray, ends: np.ndarray) -> int:
    """Records in the gaps of the index; raises where a gap is not made of whole records.

    A length field that lies makes a record end inside or behind the next: found here.
    """
    order = np.argsort(offsets, kind="stable")
    starts = np.append(offsets[order], records.file.size)
    stops = np.append(0, ends[order])
    return sum(
        sum(1 for _ in records.scan(int(stops[gap]), int(starts[gap])))
        for gap in np.flatnonzero(starts != stops)
    )
