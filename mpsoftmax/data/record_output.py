"""Writing image sets as RecordIO, in InsightFace or im2rec style; layouts: ``record_images``."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpsoftmax.data.image_set import IGNORE, ImageSet, encoded
from mpsoftmax.data.record_io import MAX_LABEL, RecordWriter, pack_body

STYLES = ("insightface", "im2rec")


def write_records(
    rec_path: Path,
    idx_path: Path,
    names_path: Path,
    property_path: Path | None,
    images: ImageSet,
    style: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a .rec with its side files.

    InsightFace style writes labels as [class, 0] (alignment not stated), as most such sets do.
    Identity ranges above key 2^24 are written as the nearest float32, as the format must: readers
    that trust them go wrong there, readers that trust the index (this one) do not.

    Args:
        rec_path: The .rec to create.
        idx_path: The .idx to create.
        names_path: The JSON list of class names to create.
        property_path: The ``property`` to create, if wanted; left out where the first image's
            size cannot be read.
        images: The set; arrays are stored as PNG.
        style: ``"insightface"`` or ``"im2rec"``.
        progress: Called with (done, total).

    Raises:
        ValueError: What the format cannot carry: a label above 2^24; in InsightFace style a class
            whose images are not contiguous, or an image without bytes.
    """
    check_writable(images, style)
    insightface = style == "insightface"
    with RecordWriter(rec_path, idx_path) as writer:
        for index, label in enumerate(images.labels.tolist()):
            image = encoded(images.image(index))
            if index == 0 and property_path is not None:
                _write_property(property_path, images, image)
            if insightface and not image:
                raise ValueError(
                    f"{images.name(index)}: no bytes; InsightFace style cannot tell it from an"
                    " identity record: choose style 'im2rec'"
                )
            key = index + 1 if insightface else index
            writer.write(
                key, pack_body((label, 0.0) if insightface else label, image, record_id=key)
            )
            if progress:
                progress(index + 1, len(images))
        if insightface:
            _write_identities(writer, images.labels)
    names_path.write_text(json.dumps(list(images.class_names), indent=0), encoding="utf-8")


def check_writable(images: ImageSet, style: str) -> None:
    """Refuse a set that a .rec of this style cannot carry.

    Raises:
        ValueError: Names the style or the label and what is allowed.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}: expected one of {STYLES}")
    largest = max(int(images.labels.max(initial=0)), len(images.class_names) - 1)
    if largest > MAX_LABEL:
        raise ValueError(
            f"label {largest}: RecordIO labels are float32, exact only up to {MAX_LABEL}:"
            " store the set as .arrow"
        )
    if style == "insightface" and not is_contiguous(images.labels):
        raise ValueError(
            "the images of a class are not contiguous, as InsightFace style needs: choose style"
            " 'im2rec', or regroup"
        )


def is_contiguous(labels: np.ndarray) -> bool:
    """Whether each class (-1 left out) occurs in one run."""
    starts, _ = _runs(labels)
    run_labels = labels[starts]
    return len(np.unique(run_labels)) == len(run_labels)


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last index of each run of equal labels other than -1."""
    if not len(labels):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    cuts = np.flatnonzero(np.diff(labels)) + 1
    starts, stops = np.append(0, cuts), np.append(cuts, len(labels))
    kept = labels[starts] != IGNORE
    return starts[kept], stops[kept]


def _write_identities(writer: RecordWriter, labels: np.ndarray) -> None:
    """The header under key 0, then one record per identity in order of appearance."""
    starts, stops = _runs(labels)
    after = len(labels) + 1
    writer.write(0, pack_body((after, after + len(starts)), b""))
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        key = after + number
        writer.write(key, pack_body((start + 1, stop + 1), b"", record_id=key))


def _write_property(path: Path, images: ImageSet, image: bytes) -> None:
    """``num_classes,height,width`` of the first image; left out when that cannot be read."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(image)).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return
    path.write_text(f"{len(images.class_names)},{height},{width}\n", encoding="ascii")
