"""Writes an image set as an Arrow IPC file; the format is described in ``arrow``."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from mpsoftmax.data.arrow import CLASS_NAMES_KEY
from mpsoftmax.data.image_set import ImageSet, encoded

BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20


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
