"""What can be embedded: any image set, also without classes."""

from pathlib import Path
from typing import Any

from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.open import open_images
from mpsoftmax.data.pairs import read_bin, read_pairs


def open_to_embed(spec: str | Path, **options: Any) -> ImageSet:
    """Open images to be embedded.

    Args:
        spec: What `open_images` opens; also folders and tars whose images lie in no class folder (labelled
            -1), an InsightFace .bin, and a pair list as LIST@FOLDER-OR-TAR: of pairs, each image once;
            a list that is none of pairs is one of labelled images, as for `open_images`.
        **options: Handed to the reader.

    Raises:
        ValueError: nothing of that name, or malformed.
    """
    text = str(spec)
    path = Path(text)
    if path.suffix.lower() == ".bin":
        return read_bin(path).images
    first, at, holder = text.partition("@")
    if at and not path.exists() and Path(first).is_file() and not options:
        return _open_list(text, first, holder)
    return open_images(spec, loose=True, **options)


def _open_list(spec: str, path: str, holder: str) -> ImageSet:
    """Of pairs, or else of images with their labels."""
    try:
        return read_pairs(path, holder).images
    except ValueError as no_pairs:
        try:
            return open_images(spec)
        except ValueError as error:
            raise ValueError(f"{error}; and as a list of pairs: {no_pairs}") from error
