"""Writes an image set in Parquet as the Hugging Face hub does; the format is described in ``parquet``."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpsoftmax.data.image_set import ImageSet, encoded
from mpsoftmax.data.parquet import HUB_KEY

GROUP_ROWS = 100
"""As the hub's own tools write images: a row group is the least that can be read."""
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(
    path: Path,
    images: ImageSet,
    progress: Callable[[int, int], None] | None = None,
    group_rows: int = GROUP_ROWS,
) -> None:
    """Write a .parquet file, one row group at a time, uncompressed: images are compressed already.

    Args:
        path: The file to create.
        images: The set; arrays are stored as PNG.
        progress: Called with (done, total).
        group_rows: Images a row group.
    """
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(images.class_names), "_type": "ClassLabel"},
    }
    metadata = {HUB_KEY: json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata=metadata)
    with pq.ParquetWriter(
        str(path), schema, compression="none", write_page_checksum=True
    ) as writer:
        for low in range(0, len(images), group_rows):
            high = min(low + group_rows, len(images))
            rows = [
                {"bytes": encoded(images.image(k)), "path": Path(images.name(k)).name}
                for k in range(low, high)
            ]
            labels = images.labels[low:high].astype(np.int64)
            columns = [pa.array(rows, IMAGE), pa.array(labels, pa.int64())]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=group_rows)
            if progress:
                progress(high, len(images))
