"""RecordIO: the container of .rec files, and the 24-byte record header.

Little-endian parts, each at a multiple of 4: magic, u32 (3 bits cflag, 29 bits length), payload,
zero padding to 4. A record is one part (cflag 0), or is split (1 first, 2 middle, 3 last) where
its bytes hold the magic at a multiple of 4: the writer drops the magic and starts a new part, the
reader puts it back. Format: dmlc-core ``recordio.h``. The .idx:
``record_index``. Image sets on top: ``record_images``.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpsoftmax.data.positional_file import PositionalFile

MAGIC = struct.pack("<I", 0xCED7230A)
LENGTH_BITS = 29
MAX_RECORD_BYTES = (1 << LENGTH_BITS) - 1
MAX_LABEL = 1 << 24  # float32 holds every integer up to here, and not the next one
_PART = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
HEADER_BYTES = _HEADER.size
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class RecordFile:
    """Reads records of a .rec file by offset. Picklable and fork safe.

    Args:
        path: The .rec file.

    Raises:
        ValueError: Missing file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = PositionalFile(path)
        self.path = self.file.path

    def read(self, offset: int) -> bytes:
        """The record whose first part is at byte ``offset``, put together.

        Raises:
            ValueError: No valid record there; names file, offset and what was expected.
        """
        parts = [self.file.read(*part) for part in self._parts(offset)]
        return parts[0] if len(parts) == 1 else MAGIC.join(parts)

    def end(self, offset: int) -> int:
        """One past the last byte (padding included) of the record at ``offset``.

        Raises:
            ValueError: No valid record there.
        """
        *_, (start, length, _) = self._parts(offset)
        return start + length + -length % 4

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[int]:
        """Offsets of all records from ``start`` to ``stop`` (default: the end of the file).

        Raises:
            ValueError: Bytes that are no record, or a last record that goes past ``stop``.
        """
        stop = self.file.size if stop is None else stop
        while start < stop:
            yield start
            start = self.end(start)
        if start != stop:
            raise ValueError(f"{self.path}: record expected to end at {stop}, it ends at {start}")

    def _parts(self, offset: int) -> Iterator[tuple[int, int, str]]:
        """Content offset, length and description of each part of the record at ``offset``."""
        first, total = offset, 0
        while True:
            what = f"record part (record at offset {first})"
            if offset % 4:
                raise ValueError(f"{self.path}: {what} expected at a multiple of 4, not {offset}")
            magic, word = _PART.unpack(self.file.read(offset, _PART.size, what))
            cflag, length = word >> LENGTH_BITS, word & MAX_RECORD_BYTES
            allowed = (_WHOLE, _FIRST) if offset == first else (_MIDDLE, _LAST)
            if magic != MAGIC or cflag not in allowed:
                raise ValueError(
                    f"{self.path}: {what} expected at offset {offset} with magic {MAGIC.hex()} and"
                    f" cflag in {allowed}, found {magic.hex()} and {cflag}"
                )
            content, padded = offset + _PART.size, length + -length % 4
            total += length + (0 if offset == first else len(MAGIC))
            if content + padded > self.file.size or total > MAX_RECORD_BYTES:
                raise ValueError(
                    f"{self.path}: {what} at offset {offset} of {length} bytes: expected inside"
                    f" the file's {self.file.size} bytes and a record under 2^{LENGTH_BITS}"
                )
            yield content, length, what
            if cflag in (_WHOLE, _LAST):
                return
            offset = content + padded


class RecordWriter:
    """Writes a .rec and its .idx, record by record; a context manager.

    Args:
        rec_path: The .rec to create.
        idx_path: The .idx to create.
    """

    def __init__(self, rec_path: Path, idx_path: Path) -> None:
        self._rec: BinaryIO = open(rec_path, "wb")  # noqa: SIM115
        self._idx: BinaryIO = open(idx_path, "wb")  # noqa: SIM115
        self._offset = 0

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._rec.close()
        self._idx.close()

    def write(self, key: int, record: bytes) -> None:
        """Append a record and its index line.

        Raises:
            ValueError: A record of 2^29 bytes or more.
        """
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(
                f"record {key} has {len(record)} bytes: RecordIO carries less than 2^{LENGTH_BITS}"
            )
        parts = _split(record)
        for position, part in enumerate(parts):
            if len(parts) == 1:
                cflag = _WHOLE
            elif position == 0:
                cflag = _FIRST
            else:
                cflag = _LAST if position == len(parts) - 1 else _MIDDLE
            self._rec.write(_PART.pack(MAGIC, cflag << LENGTH_BITS | len(part)))
            self._rec.write(part + bytes(-len(part) % 4))
        self._idx.write(b"%d\t%d\n" % (key, self._offset))
        self._offset = self._rec.tell()


def _split(record: bytes) -> list[bytes]:
    """Cut where the magic lies at a multiple of 4, wholly inside the first floor(len/4)*4 bytes."""
    parts, start, found = [], 0, record.find(MAGIC)
    while found >= 0:
        if found % 4:
            found = record.find(MAGIC, found + 1)
        else:
            parts.append(record[start:found])
            start = found + len(MAGIC)
            found = record.find(MAGIC, start)
    return [*parts, record[start:]]


def pack_body(labels: float | Sequence[float], payload: bytes, *, record_id: int = 0) -> bytes:
    """A record body: header, labels, payload.

    Args:
        labels: One number (flag 0), or a sequence (flag = its length, then float32 values).
        payload: Image bytes; empty in header and identity records.
        record_id: The header's ``id``.
    """
    if isinstance(labels, int | float):
        return _HEADER.pack(0, labels, record_id, 0) + payload
    vector = np.asarray(labels, dtype="<f4").tobytes()
    return _HEADER.pack(len(labels), 0.0, record_id, 0) + vector + payload


def unpack_body(body: bytes, where: str) -> tuple[np.ndarray, int]:
    """Labels (float32 [k], k = 1 for flag 0), and the position where the payload begins.

    Raises:
        ValueError: The body is shorter than its header says; begins with ``where``.
    """
    if len(body) < HEADER_BYTES:
        raise ValueError(
            f"{where}: record header of {HEADER_BYTES} bytes expected, found {len(body)}"
        )
    flag, label, _, _ = _HEADER.unpack_from(body)
    start = HEADER_BYTES + 4 * flag
    if start > len(body):
        raise ValueError(
            f"{where}: flag {flag} says {flag} labels ({start} bytes), the record has {len(body)}"
        )
    if flag == 0:
        return np.array([label], dtype=np.float32), start
    return np.frombuffer(body, dtype="<f4", count=flag, offset=HEADER_BYTES), start
