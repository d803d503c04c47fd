"""What a data set holds and what is wrong with it: classes, sizes, problems."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpsoftmax.data.arrow import ArrowImages
from mpsoftmax.data.decode import CorruptImage, decode, original_size
from mpsoftmax.data.folder import FolderImages, TarImages
from mpsoftmax.data.image_set import IGNORE, ImageSet
from mpsoftmax.data.inspection import EXAMPLES, Inspection, Problem
from mpsoftmax.data.open import listed, open_images
from mpsoftmax.data.pairs import read_bin
from mpsoftmax.data.parquet import ParquetImages
from mpsoftmax.data.record_images import RecordImages
from mpsoftmax.data.webdataset import ShardImages

SAMPLE = 10_000


def inspect(
    path: str | Path,
    *,
    sample: int | None = SAMPLE,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Inspection:
    """Examine a set of images or an InsightFace ``.bin``.

    Args:
        path: What ``open_images`` takes, or a ``.bin``.
        sample: Images to read and decode, drawn with a fixed seed; None = all. Undecodable and
            duplicate images and sizes are found among these only.
        progress: Called with (done, total) images.
        **options: Handed to the reader.

    Raises:
        ValueError: A set that cannot be opened at all, or a ``sample`` below 0.
    """
    if sample is not None and sample < 0:
        raise ValueError(f"sample is {sample}: expected 0 or more, or None for all")
    pair_set = read_bin(path) if Path(path).suffix.lower() == ".bin" else None
    images = pair_set.images if pair_set else _open(path, options)
    labels, num_classes = images.labels, len(images.class_names)
    valid = labels[(labels >= 0) & (labels < num_classes)]
    indices = np.arange(len(images))
    if sample is not None and sample < len(indices):
        indices = np.sort(np.random.default_rng(0).choice(indices, sample, replace=False))
    findings = _examine(images, indices, progress)
    class_sizes = np.bincount(valid, minlength=num_classes)
    problems = [
        *_set_problems(images, class_sizes),
        *_duplicates(images, findings.places),
    ]
    if findings.corrupt:
        problems.append(_problem("undecodable images", findings.corrupt))
    return Inspection(
        path=str(path),
        format="bin" if pair_set else _format(images, str(path)),
        num_classes=num_classes,
        num_images=len(images),
        num_ignored=int((labels == IGNORE).sum()),
        class_sizes=class_sizes,
        num_examined=len(indices),
        sizes=dict(findings.sizes.most_common()),
        num_bytes=findings.num_bytes,
        problems=tuple(problems),
        num_pairs=len(pair_set) if pair_set else None,
        num_same=int(pair_set.same.sum()) if pair_set else None,
    )


@dataclass
class _Findings:
    """What reading the images showed; ``places`` maps a digest to the samples that have it."""

    corrupt: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    places: dict[bytes, list[int]] = field(default_factory=dict)
    num_bytes: int = 0


def _open(path: str | Path, options: dict[str, Any]) -> ImageSet:
    """Open without refusing labels out of range: they are to be reported."""
    if str(path) in ("glyphs", "synthetic"):
        return open_images(path, **options)
    return open_images(path, check=False, **options)


def _format(images: ImageSet, path: str) -> str:
    if isinstance(images, RecordImages):
        return f"rec ({images.style})"
    kinds = (
        (FolderImages, "folder"),
        (TarImages, "tar"),
        (ArrowImages, "arrow"),
        (ParquetImages, "parquet"),
        (ShardImages, "webdataset"),
    )
    if isinstance(images, FolderImages | TarImages) and listed(path):
        return "list of paths"
    return next((name for kind, name in kinds if isinstance(images, kind)), path)


def _examine(
    images: ImageSet, indices: np.ndarray, progress: Callable[[int, int], None] | None
) -> _Findings:
    findings = _Findings()
    for done, index in enumerate(indices.tolist(), start=1):
        image = images.image(index)
        data = image if isinstance(image, bytes) else image.tobytes()
        findings.num_bytes += len(data)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        findings.places.setdefault(digest, []).append(index)
        try:
            findings.sizes[_size(image)] += 1
        except CorruptImage as error:
            findings.corrupt.append(f"{images.name(index)}: {error}")
        if progress:
            progress(done, len(indices))
    return findings


def _size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width in pixels of an image that decodes to the end."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    size = original_size(image)
    decode(image, size)
    return size


def _set_problems(images: ImageSet, class_sizes: np.ndarray) -> Iterator[Problem]:
    labels = images.labels
    noticed = getattr(images, "problems", ())
    if noticed:
        yield _problem("noticed by the reader", noticed)
    bad = np.flatnonzero((labels < IGNORE) | (labels >= len(class_sizes)))
    if len(bad):
        yield _problem(
            "labels out of range", [f"{images.name(i)}: {labels[i]}" for i in bad.tolist()]
        )
    empty = np.flatnonzero(class_sizes == 0)
    if len(empty):
        yield _problem("empty classes", [images.class_names[int(i)] for i in empty])


def _duplicates(images: ImageSet, places: dict[bytes, list[int]]) -> Iterator[Problem]:
    """Groups of equal images, by whether all have one label."""
    groups = [group for group in places.values() if len(group) > 1]
    within = [group for group in groups if len(set(images.labels[group].tolist())) == 1]
    across = [group for group in groups if len(set(images.labels[group].tolist())) > 1]
    for kind, found in (("within a class", within), ("across classes", across)):
        if found:
            texts = [" = ".join(images.name(i) for i in group[:EXAMPLES]) for group in found]
            yield _problem(f"groups of identical images {kind}", texts)


def _problem(kind: str, examples: list[str] | tuple[str, ...]) -> Problem:
    return Problem(kind, len(examples), tuple(examples[:EXAMPLES]))
