"""Row groups read for one sample of a Parquet set, and the time a sample takes, by the order of reading.

No image is decoded. Run: python benchmarks/parquet_reads.py [images]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mpsoftmax.bench.loader import Jpegs
from mpsoftmax.data.convert import convert
from mpsoftmax.data.grouped_order import GroupedOrder
from mpsoftmax.data.open import open_images
from mpsoftmax.data.order import ImagesOrder
from mpsoftmax.data.synthetic import Synthetic

WINDOWS = (1, 4, 8, 16)
PROCESSES = 4
BATCH = 256


def main() -> None:
    """One line an order: this process alone, then as one of several workers that take turns at batches."""
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    source = Jpegs(Synthetic(num_classes=num // 20, images_per_class=20, size=(112, 112)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        convert(source, path)
        print(f"{num} images of {path.stat().st_size / num:.0f} bytes, row groups of 100")
        for name, order, cache in orders(path, num):
            for every in (1, PROCESSES):
                images = open_images(path, cache_groups=cache)
                taken = [
                    k
                    for low in range(0, num, every * BATCH)
                    for k in order.samples(low, min(low + BATCH, num)).tolist()
                ]
                begin = time.process_time()
                for k in taken:
                    images.image(k)
                spent = time.process_time() - begin
                print(
                    f"{name:>12}, 1 of {every} processes: {images.reads / len(taken):.4f} row groups, "
                    f"{1e6 * spent / len(taken):.0f} us a sample"
                )


def orders(path: Path, num: int):  # noqa: ANN201
    """(name, order, row groups kept)."""
    starts = open_images(path).group_starts
    yield "images", ImagesOrder(np.zeros(num), 0), 8
    for window in WINDOWS:
        yield f"grouped, {window}", GroupedOrder(starts, 0, window), window


if __name__ == "__main__":
    main()
