"""Converting image sets between folder, tar, RecordIO, Arrow and Parquet, bytes, order and labels exact.

Encoded images are copied byte for byte; images that exist only as arrays (glyphs, synthetic) are
encoded as PNG, which is lossless. What the target cannot carry is refused, never changed: a folder
or tar carries only sets ordered by class whose class names sort in class order, no ignored
samples and no empty classes; RecordIO no label above 2^24.
"""

import io
import itertools
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mpsoftmax.data.arrow_output import write_arrow
from mpsoftmax.data.folder import IMAGE_SUFFIXES, FolderImages, TarImages
from mpsoftmax.data.image_set import ImageSet, Subset, check_labels, encoded
from mpsoftmax.data.new_files import new_files
from mpsoftmax.data.open import open_images
from mpsoftmax.data.parquet_output import write_parquet
from mpsoftmax.data.record_output import STYLES, is_contiguous, write_records
from mpsoftmax.data.string_table import NumberNames

Progress = Callable[[int, int], None]
FORMATS = {".tar": "tar", ".rec": "rec", ".arrow": "arrow", ".parquet": "parquet"}
_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"RIFF", ".webp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"P6", ".ppm"),
    (b"P5", ".pgm"),
)


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: The file or folder.
        format: ``folder``, ``tar``, ``rec (insightface)``, ``rec (im2rec)``, ``arrow`` or ``parquet``.
        num_images: Images written.
        num_classes: Classes.
    """

    path: Path
    format: str
    num_images: int
    num_classes: int


def convert(
    src: str | Path | ImageSet,
    dst: str | Path,
    *,
    style: str = "auto",
    regroup: bool = False,
    number_classes: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Converted:
    """Write a set in another format. The target appears complete or not at all.

    Args:
        src: A set, or what ``open_images`` takes.
        dst: ``*.tar``, ``*.rec``, ``*.arrow``, ``*.parquet``, or a folder: a name without suffix, or any name
            ending in ``/``.
        style: For ``.rec``: ``insightface``, ``im2rec``, or ``auto``: InsightFace style where the
            images of every class are contiguous, as it needs, else im2rec style.
        regroup: First order the images by class (stable), for targets that need it.
        number_classes: Name classes by zero-padded index, for sets whose class names are no
            folder names or do not sort in class order.
        progress: Called with (done, total) images.
        **options: Handed to ``open_images``.

    Raises:
        ValueError: ``dst`` exists, has an unknown suffix, or cannot carry the set; says why.
    """
    images = open_images(src, **options) if isinstance(src, str | Path) else src
    kind, path = _target(dst)
    if style not in ("auto", *STYLES):
        raise ValueError(f"style is {style!r}: expected one of {('auto', *STYLES)}")
    if style != "auto" and kind != "rec":
        raise ValueError(f"style is {style!r}: only a .rec has a style, not {path}")
    check_labels(images.labels, len(images.class_names), images.name, str(src))
    if regroup:
        order = np.argsort(images.labels, kind="stable").astype(np.int64)
        images = Subset(images, order, np.arange(len(images.class_names), dtype=np.int64))
    if number_classes:
        images = _Renamed(images)
    label = kind
    if kind == "rec":
        if style == "auto":
            style = "insightface" if is_contiguous(images.labels) else "im2rec"
        label = f"rec ({style})"
        _write_rec(path, images, style, progress)
    else:
        write = _WRITERS[kind]
        with new_files(path) as (temporary,):
            write(temporary, images, progress)
    return Converted(path, label, len(images), len(images.class_names))


class _Renamed:
    """A set whose classes are named by number; an ``ImageSet``."""

    def __init__(self, images: ImageSet) -> None:
        self.labels = images.labels
        self.class_names = NumberNames(len(images.class_names))
        self.image, self.name = images.image, images.name

    def __len__(self) -> int:
        return len(self.labels)


def _target(dst: str | Path) -> tuple[str, Path]:
    path = Path(dst)
    suffix = path.suffix.lower()
    if str(dst).endswith(("/", os.sep)) or not suffix:
        return "folder", path
    if suffix not in FORMATS:
        raise ValueError(
            f"target {str(dst)!r}: expected *.tar, *.rec, *.arrow, *.parquet, or a folder: no suffix, or a"
            " name ending in '/'"
        )
    return FORMATS[suffix], path


def _write_rec(path: Path, images: ImageSet, style: str, progress: Progress | None) -> None:
    """The .rec last: with it the set exists. ``property`` belongs to ``train.rec`` alone."""
    sides = [path.with_suffix(".idx"), path.with_suffix(".classes.json")]
    if path.stem == "train":
        sides.append(path.with_name("property"))
    with new_files(*sides, path) as (idx, names, *rest):
        property_path = rest[0] if len(rest) == 2 else None
        write_records(rest[-1], idx, names, property_path, images, style, progress)


def _write_folder(root: Path, images: ImageSet, progress: Progress | None) -> None:
    path_of = _tree(images)
    root.mkdir()
    for index in range(len(images)):
        image = encoded(images.image(index))
        path = root / path_of(index, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(image)
        if progress:
            progress(index + 1, len(images))


def _write_tar(path: Path, images: ImageSet, progress: Progress | None) -> None:
    path_of = _tree(images)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for index in range(len(images)):
            image = encoded(images.image(index))
            member = tarfile.TarInfo(path_of(index, image))
            member.size, member.mode = len(image), 0o644
            archive.addfile(member, io.BytesIO(image))
            if progress:
                progress(index + 1, len(images))


_WRITERS: dict[str, Callable[[Path, ImageSet, Progress | None], None]] = {
    "folder": _write_folder,
    "tar": _write_tar,
    "arrow": write_arrow,
    "parquet": write_parquet,
}


def _tree(images: ImageSet) -> Callable[[int, bytes], str]:
    """How to name image files so that reading the tree gives the same order and labels.

    File names are kept where the source has them; otherwise they are the zero-padded index with
    the suffix its bytes call for (``.jpg`` for bytes of no known image format).
    """
    _check_tree(images)
    names, labels = images.class_names, images.labels
    if isinstance(images, FolderImages | TarImages) and _is_tree(images):
        paths = images.paths
        return lambda index, image: paths[index]
    numbers = NumberNames(len(images))

    def path_of(index: int, image: bytes) -> str:
        suffix = next((s for start, s in _SIGNATURES if image.startswith(start)), ".jpg")
        return f"{names[int(labels[index])]}/{numbers[index]}{suffix}"

    return path_of


def _is_tree(images: FolderImages | TarImages) -> bool:
    """Whether paths say the classes and sort in the images' order; those of a list need not."""
    keys = [path.rpartition("/")[::2] for path in images.paths]
    names = [images.class_names[int(label)] for label in images.labels]
    folders = [folder for folder, _ in keys]
    return folders == names and all(a < b for a, b in itertools.pairwise(keys))


def _check_tree(images: ImageSet) -> None:
    """Refuse a set that a folder per class cannot carry."""
    labels, names = images.labels, images.class_names
    descents = np.flatnonzero(np.diff(labels) < 0)
    if len(descents):
        raise ValueError(
            f"{images.name(int(descents[0]) + 1)}: a folder or tar is ordered by class and cannot"
            " keep this order: choose regroup, or another format"
        )
    if len(labels) and labels[0] < 0:
        raise ValueError(f"{images.name(0)}: a folder or tar cannot mark an image as ignored")
    empty = np.setdiff1d(np.arange(len(names)), labels)
    if len(empty):
        raise ValueError(
            f"class {names[int(empty[0])]!r} has no image: a folder or tar cannot carry that"
        )
    last = None
    for name in names:
        if last is not None and name <= last:
            raise ValueError(
                f"class name {name!r} does not sort behind {last!r}: a folder or tar would number"
                " the classes differently: choose number_classes"
            )
        _check_class_name(name)
        last = name


def _check_class_name(name: str) -> None:
    path = PurePosixPath(name)
    if (
        str(path) != name
        or path.is_absolute()
        or "\0" in name
        or any(part.startswith(".") for part in path.parts)
        or name.lower().endswith(IMAGE_SUFFIXES)
    ):
        raise ValueError(f"class name {name!r} cannot be a folder's: choose number_classes")
