"""Images in an Arrow IPC *file* (.arrow), memory-mapped: no copy, no index file, any class count.

Columns ``image`` (binary or large_binary: encoded bytes) and ``label`` (int64; -1 = ignore), no
nulls; other columns are left alone. Class names, by class index, are a JSON list in the schema
metadata under the key ``mpsoftmax.class_names``; without it they are zero-padded numbers and the
number of classes is the largest label plus one. Rows are written in record batches of at most
1,024 rows and about 32 MiB. Files written without compression are read in place.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mpsoftmax.data.image_set import ImageSet, check_labels, encoded
from mpsoftmax.data.string_table import NumberNames, StringTable

CLASS_NAMES_KEY = b"mpsoftmax.class_names"
BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20
# What pyarrow raises for damaged bytes; column names may no longer be UTF-8.
_DAMAGE = (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError)


class ArrowImages:
    """Images of an Arrow IPC file; an ``ImageSet``.

    Args:
        path: The .arrow file.

    Raises:
        ValueError: Not such a file, or damaged; names the file and what was expected.
    """

    problems: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._reader: pa.RecordBatchFileReader | None = None
        self._reader_pid = 0
        self._batch: pa.RecordBatch | None = None
        self._batch_number = -1
        try:
            self._read_labels()
        except _DAMAGE as error:
            raise self._malformed(error) from None
        self._checked = np.zeros(len(self._starts) - 1, dtype=bool)

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]."""
        return self._labels

    @property
    def class_names(self) -> Sequence[str]:
        """One name a class."""
        return self._class_names

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> bytes:
        """Bytes of row ``index``.

        Raises:
            ValueError: The row's record batch is damaged.
        """
        row = range(len(self))[index]
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        try:
            batch = self._read_batch(number)
        except _DAMAGE as error:
            raise self._malformed(error, f"record batch {number}") from None
        return batch.column("image")[row - int(self._starts[number])].as_py()

    def name(self, index: int) -> str:
        """``file.arrow: row INDEX``."""
        return f"{self.path}: row {index}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_batch": None, "_batch_number": -1}

    def _read_labels(self) -> None:
        """Read schema and the label column only; the image bytes stay untouched on disk."""
        reader = self._open("label")
        parts, starts = [], [0]
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            labels = batch.column("label")
            if labels.null_count:
                raise ValueError(
                    f"{self.path}: record batch {number}: label without nulls expected"
                )
            parts.append(labels.to_numpy())
            starts.append(starts[-1] + len(labels))
        self._labels = np.concatenate([np.zeros(0, np.int64), *parts])
        self._starts = np.array(starts, dtype=np.int64)
        if not len(self._labels):
            raise ValueError(f"{self.path}: holds no images")
        self._class_names = self._names(reader.schema.metadata or {})

    def _check_schema(self, schema: pa.Schema) -> None:
        allowed = {"image": (pa.binary(), pa.large_binary()), "label": (pa.int64(),)}
        for column, types in allowed.items():
            found = [field.type for field in schema if field.name == column]
            if len(found) != 1 or found[0] not in types:
                raise ValueError(
                    f"{self.path}: one column {column!r} of type {' or '.join(map(str, types))}"
                    f" expected, found {[str(kind) for kind in found] or 'none'}"
                )

    def _names(self, metadata: dict[bytes, bytes]) -> Sequence[str]:
        if CLASS_NAMES_KEY not in metadata:
            return NumberNames(int(self._labels.max()) + 1)
        what = f"{self.path}: JSON list of class names expected in {CLASS_NAMES_KEY.decode()!r}"
        try:
            names = json.loads(metadata[CLASS_NAMES_KEY])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{what}: {error}") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(what)
        return StringTable(names)

    def _open(self, column: str) -> pa.RecordBatchFileReader:
        """A reader of one column; the mapping outlives the handle, since batches refer to it."""
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        with pa.memory_map(str(self.path)) as file, pa.ipc.open_file(file) as reader:
            schema = reader.schema
        self._check_schema(schema)
        options = pa.ipc.IpcReadOptions(
            use_threads=False, included_fields=[schema.get_field_index(column)]
        )
        return pa.ipc.open_file(pa.memory_map(str(self.path)), options=options)

    def _read_batch(self, number: int) -> pa.RecordBatch:
        reader = self._reader
        if reader is None or self._reader_pid != os.getpid():
            reader = self._reader = self._open("image")
            self._reader_pid, self._batch = os.getpid(), None
        if self._batch is None or self._batch_number != number:
            batch = reader.get_batch(number)
            self._check_batch(batch, number)
            self._batch, self._batch_number = batch, number
        return self._batch

    def _check_batch(self, batch: pa.RecordBatch, number: int) -> None:
        """Once a batch: a false offset in a damaged file would read memory that is not ours."""
        if self._checked[number]:
            return
        batch.validate(full=True)
        if batch.column("image").null_count:
            raise ValueError(f"{self.path}: record batch {number}: image without nulls expected")
        if len(batch) != self._starts[number + 1] - self._starts[number]:
            raise ValueError(f"{self.path}: record batch {number}: changed while being read")
        self._checked[number] = True

    def _malformed(self, error: BaseException, where: str = "Arrow IPC file") -> ValueError:
        return ValueError(f"{self.path}: {where} expected, damaged or of another format: {error}")


def open_arrow(path: str | os.PathLike[str], *, check: bool = True) -> ArrowImages:
    """Open an .arrow file.

    Args:
        path: The file.
        check: Refuse labels out of range; ``inspect`` reports them instead.

    Raises:
        ValueError: Malformed file, or a label that is no class.
    """
    images = ArrowImages(path)
    if check:
        check_labels(images.labels, len(images.class_names), images.name, str(images.path))
    return images


def write_arrow(
    path: Path, images: ImageSet, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write an .arrow file, one record batch at a time.

    Args:
        path: The file to create.
        images: The set; arrays are stored as PNG.
        progress: Called with (done, total).
    """
    names = json.dumps(list(images.class_names))
    schema = pa.schema(
        [
            pa.field("image", pa.large_binary(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
        ],
        metadata={CLASS_NAMES_KEY: names.encode()},
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        rows: list[bytes] = []
        num_bytes = 0
        for index in range(len(images)):
            rows.append(encoded(images.image(index)))
            num_bytes += len(rows[-1])
            last = index == len(images) - 1
            if last or len(rows) == BATCH_ROWS or num_bytes >= BATCH_BYTES:
                labels = images.labels[index + 1 - len(rows) : index + 1]
                columns = [
                    pa.array(rows, pa.large_binary()),
                    pa.array(labels.astype(np.int64), pa.int64()),
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                rows, num_bytes = [], 0
            if progress:
                progress(index + 1, len(images))
