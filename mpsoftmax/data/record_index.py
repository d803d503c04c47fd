"""The index of a .rec file: lines ``key TAB offset``, read or rebuilt as two int64 arrays."""

import os
from array import array

import numpy as np
import pyarrow as pa
from pyarrow import csv

from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.record_io import RecordFile


def read_index(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read an .idx file.

    Returns:
        Keys and byte offsets, int64 [n] each, in the order written.

    Raises:
        ValueError: Not lines of ``key TAB offset``, a cut last line, or a repeated key.
    """
    file = PositionalFile(path)
    if not file.size or file.read(file.size - 1, 1, "last line") != b"\n":
        raise ValueError(f"{path}: lines 'key TAB offset' expected, the last ended by LF")
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False, column_names=["key", "offset"]),
            parse_options=csv.ParseOptions(
                delimiter="\t", quote_char=False, ignore_empty_lines=False
            ),
            convert_options=csv.ConvertOptions(
                column_types={"key": pa.int64(), "offset": pa.int64()}, null_values=[]
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(f"{path}: lines 'key TAB offset' expected: {error}") from None
    keys, offsets = table["key"].to_numpy(), table["offset"].to_numpy()
    if len(np.unique(keys)) != len(keys):
        raise ValueError(f"{path}: every key expected once, {len(keys)} lines have repeats")
    return keys, offsets


def scan_index(records: RecordFile) -> tuple[np.ndarray, np.ndarray]:
    """Rebuild a lost index by walking the file.

    Keys are positions in the file, from 0: the true ones cannot be known.

    Returns:
        Keys and byte offsets, int64 [n] each.

    Raises:
        ValueError: Bytes that are no record.
    """
    offsets = np.array(array("q", records.scan()), dtype=np.int64)
    return np.arange(len(offsets), dtype=np.int64), offsets
