"""Images in an Arrow IPC *file* (.arrow), memory-mapped: no copy, no index file, any class count.

Columns ``image`` (binary or large_binary: encoded bytes) and ``label`` (int64; -1 = ignore), no
nulls; other columns are left alone. Class names, by class index, are a JSON list in the schema
metadata under the key ``mpsoftmax.class_names``; without it they are zero-padded numbers and the
number of classes is the largest label plus one. Rows are written in record batches of at most
1,024 rows and about 32 MiB. Files written without compression are read in place.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mpsoftmax.data.image_set import check_labels
from mpsoftmax.data.string_table import StringTable, numbered_classes

CLASS_NAMES_KEY = b"mpsoftmax.class_names"
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
        self._images: pa.Array | None = None  # of the record batch last read
        self._number = -1  # of that record batch
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

    @property
    def group_starts(self) -> np.ndarray:
        """int64 [batches + 1], index of each record batch's first row, and n; none is empty."""
        return np.unique(self._starts)

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
            images = self._read_images(number)
        except _DAMAGE as error:
            raise self._malformed(error, f"record batch {number}") from None
        return images[row - int(self._starts[number])].as_py()

    def name(self, index: int) -> str:
        """``file.arrow: row INDEX``."""
        return f"{self.path}: row {index}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_images": None, "_number": -1}

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
            return numbered_classes(self._labels, str(self.path))
        what = f"{self.path}: JSON list of class names expected in {CLASS_NAMES_KEY.decode()!r}"
        try:
            names = json.loads(metadata[CLASS_NAMES_KEY])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{what}: {error}") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(what)
        return StringTable(names)

    def _open(self, column: str | None = None) -> pa.RecordBatchFileReader:
        """A reader of all columns in place, or of one: what Arrow reads of chosen columns is a copy.

        From the mapping as one buffer: through a mapped file Arrow asks for every page of a record batch.
        """
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        file = pa.memory_map(str(self.path)).read_buffer()
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
        self._check_schema(reader.schema)
        if column is None:
            return reader
        chosen = [reader.schema.get_field_index(column)]
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=chosen)
        return pa.ipc.open_file(file, options=options)

    def _read_images(self, number: int) -> pa.Array:
        reader = self._reader
        if reader is None or self._reader_pid != os.getpid():
            reader = self._reader = self._open()
            self._reader_pid, self._images = os.getpid(), None
        if self._images is None or self._number != number:
            images = reader.get_batch(number).column("image")
            self._check_images(images, number)
            self._images, self._number = images, number
        return self._images

    def _check_images(self, images: pa.Array, number: int) -> None:
        """Once a batch: a false offset in a damaged file would read memory that is not ours."""
        if self._checked[number]:
            return
        images.validate(full=True)
        if images.null_count:
            raise ValueError(f"{self.path}: record batch {number}: image without nulls expected")
        if len(images) != self._starts[number + 1] - self._starts[number]:
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
