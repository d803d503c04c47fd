"""Images decoded and augmented a second of one core, by the format they are stored in.

The same encoded bytes in a folder, a tar, RecordIO, Arrow and Parquet (there in the order `grouped`), read in
a training's shuffled order by its loader in this process, against decoding the bytes alone from memory: with
Pillow, and with the fastest decoder installed.
"""

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpsoftmax.bench import plots, record
from mpsoftmax.bench.timing import Times, interleaved, ratios, spread
from mpsoftmax.data.convert import convert
from mpsoftmax.data.decode import DECODERS, check_decoder, decode
from mpsoftmax.data.grouped_order import GroupedOrder
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.loader import Loader
from mpsoftmax.data.open import open_images
from mpsoftmax.data.order import ImagesOrder, Order
from mpsoftmax.data.parquet import ParquetImages
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.data.transforms import DEFAULTS
from mpsoftmax.strict import suggestion

FORMATS = {
    "folder": "folder",
    "tar": "set.tar",
    "recordio": "set.rec",
    "arrow": "set.arrow",
    "parquet": "set.parquet",
}
BATCH = 64
JPEG_QUALITY = 95


def run(options: argparse.Namespace) -> None:
    """Measure, print, append, plot."""
    machine = record.machine()
    if options.augment not in DEFAULTS:
        raise ValueError(
            f"--augment: {options.augment!r}{suggestion(options.augment, list(DEFAULTS))}"
        )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mpsoftmax-bench-") as folder:
        stored = store(Path(folder), options.data, max(options.images), options.size)
        for number in options.images:
            rows += measure(stored, number, options)
    out = Path(options.out)
    record.append(out / "bench_loader.csv", [{**row, **machine} for row in rows])
    parts = {"images per core-second": [row["images_per_core_s"] for row in rows]}
    labels = [f"{row['what']} ({row['decoder']}), {row['images']} images" for row in rows]
    plots.bars(out / "bench_loader.png", "Data loader", "images per core-second", labels, parts)


class Jpegs:
    """The first `num` images of a set whose images are arrays, encoded as JPEG once."""

    def __init__(self, images: ImageSet) -> None:
        self.labels, self.class_names = images.labels, images.class_names
        self._images = images

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> bytes:
        """Encoded bytes."""
        file = io.BytesIO()
        pixels = self._images.image(index)
        assert isinstance(pixels, np.ndarray)
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()

    def name(self, index: int) -> str:
        """As the set gives it."""
        return self._images.name(index)


def store(folder: Path, data: str | None, num: int, size: int) -> dict[str, ImageSet]:
    """One set in every format, in a folder that is removed afterwards."""
    if data is None:
        classes = -(-num // 20)
        source: ImageSet = Jpegs(
            Synthetic(num_classes=classes, images_per_class=20, size=(size, size))
        )
    else:
        source = open_images(data)
        if len(source) < num:
            raise ValueError(f"--images: {num}; allowed: at most the {len(source)} of {data}")
        if isinstance(source.image(0), np.ndarray):
            raise ValueError(f"--data: {data!r} holds no encoded images; allowed: files that do")
    convert(source, folder / "folder", number_classes=True)
    for name in list(FORMATS.values())[1:]:
        convert(folder / "folder", folder / name)
    return {form: open_images(folder / name) for form, name in FORMATS.items()}


def installed() -> list[str]:
    """Decoders that can be used here."""
    out = []
    for name in DECODERS:
        try:
            check_decoder(name)
        except ValueError:
            continue
        out.append(name)
    return out


def measure(
    stored: dict[str, ImageSet], number: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Lines of the table for one number of images."""
    size, augment = (options.size, options.size), DEFAULTS[options.augment]
    decoders = installed()
    data = [stored["folder"].image(index) for index in range(number)]
    timed: dict[str, Callable[[], object]] = {
        f"bare {decoder}": bare(data, size, decoder) for decoder in decoders
    }
    for form, images in stored.items():
        for decoder in decoders:
            order = order_of(images, number)
            loader = Loader(images, order, size=size, decoder=decoder, augment=augment)
            timed[f"{form} {decoder}"] = reading(loader, number)
    times = interleaved(timed, options.repeat)
    fastest = min(decoders, key=lambda name: times[f"bare {name}"].cpu)
    rows = [
        line(name, found, times, fastest, number, options)
        for name, found in times.items()
        if name.split()[1] in ("pillow", fastest)
    ]
    for row in rows:
        print(
            f"{row['what']} ({row['decoder']}): {row['images_per_core_s']:,.0f} images per core-second "
            f"({row['images_per_core_s_min']:,.0f}, {row['images_per_core_s_max']:,.0f}); "
            f"{row['share_of_bare']:.0%} ({row['share_of_bare_min']:.0%}, {row['share_of_bare_max']:.0%}) of "
            f"bare decoding, {row['share_of_fastest']:.0%} of the fastest; {row['share_of_tar']:.0%} of tar"
        )
    return rows


def order_of(images: ImageSet, number: int) -> Order:
    """Shuffled as training would: Parquet by its row groups, else image by image."""
    if not isinstance(images, ParquetImages):
        return ImagesOrder(images.labels[:number], seed=0)
    starts = images.group_starts
    kept = np.append(starts[starts < number], number)
    return GroupedOrder(kept, seed=0, window=images.cache_groups)


def bare(data: Sequence[bytes | np.ndarray], size: tuple[int, int], decoder: str) -> Callable:
    """Decodes bytes in memory."""

    def decoding() -> None:
        for image in data:
            decode(image, size, decoder)

    return decoding


def reading(loader: Loader, number: int) -> Callable:
    """Reads `number` images in batches."""
    cuts = [(low, min(low + BATCH, number)) for low in range(0, number, BATCH)]

    def read() -> None:
        for _ in loader.stream(cuts):
            pass

    return read


def line(
    name: str,
    found: Times,
    times: dict[str, Times],
    fastest: str,
    number: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One line of the table."""
    what, decoder = name.split()

    def share(yardstick: str) -> Sequence[float]:
        return ratios(times[yardstick], found)

    return {
        "what": what,
        "decoder": decoder,
        "images": number,
        "size": options.size,
        "augment": "none" if what == "bare" else options.augment,
        "data": "synthetic" if options.data is None else Path(options.data).name,
        "images_per_core_s": round(number / found.cpu, 1),
        "images_per_core_s_min": round(number / max(found.cpu_s), 1),
        "images_per_core_s_max": round(number / min(found.cpu_s), 1),
        **spread("share_of_bare", share(f"bare {decoder}")),
        **spread("share_of_fastest", share(f"bare {fastest}")),
        **spread("share_of_tar", share(f"tar {decoder}")),
        "repeat": options.repeat,
    }
