"""Class rows as an Arrow IPC file: what the classifier has learned of each class, as unit vectors.

Columns: `class_id` int64, `class_name` string (null where the names are not known), `centre` int32 (0, or
0..K-1 of sub-centres), `merged_into` int64 (the class whose row speaks for this one, else null) and `row`
fixed_size_list<float32>[D] of unit length.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mpsoftmax.models.header import KEY
from mpsoftmax.train.stored_rows import StoredTable


def schema(dim: int, metadata: Mapping[str, object]) -> pa.Schema:
    """Columns and metadata of the file."""
    fields = [
        pa.field("class_id", pa.int64(), nullable=False),
        pa.field("class_name", pa.string()),
        pa.field("centre", pa.int32(), nullable=False),
        pa.field("merged_into", pa.int64()),
        pa.field("row", pa.list_(pa.float32(), dim), nullable=False),
    ]
    return pa.schema(fields, metadata={KEY: json.dumps(metadata)})


def write_class_rows(
    path: Path, table: StoredTable, names: Sequence[str] | None, metadata: Mapping[str, object]
) -> None:
    """Write the file, a block of classes at a time.

    Args:
        path: To create.
        table: From `stored_table`.
        names: One a class; None where they are not known.
        metadata: JSON-ready; stands in the schema under `mpsoftmax`.

    Raises:
        ValueError: a row is not finite or is zero, and so has no direction.
    """
    kept = {parked: kept for kept, parked in table.merged}
    described = schema(table.dim, metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, described) as writer:
        first = 0
        for block in table.blocks:
            num, centres, dim = block.shape
            rows = block.reshape(-1, dim)
            norm = rows.norm(dim=1, keepdim=True)
            if not bool(((norm > 0) & norm.isfinite()).all()):
                where = first + int(torch.nonzero(~((norm > 0) & norm.isfinite()))[0, 0]) // centres
                raise ValueError(f"export: the row of class {where} has no direction")
            ids = np.repeat(np.arange(first, first + num), centres)
            named = [None if names is None else str(names[int(one)]) for one in ids]
            columns = [
                pa.array(ids, pa.int64()),
                pa.array(named, pa.string()),
                pa.array(np.tile(np.arange(centres, dtype=np.int32), num)),
                pa.array([kept.get(int(one)) for one in ids], pa.int64()),
                pa.FixedSizeListArray.from_arrays(
                    pa.array((rows / norm).numpy().ravel(), pa.float32()), dim
                ),
            ]
            writer.write_batch(pa.record_batch(columns, schema=described))
            first += num
        if first != table.num_classes:
            raise ValueError(f"export: rows of {first} classes; expected {table.num_classes}")
