"""What can be embedded: any image set, also without classes."""

from pathlib import Path
from typing import Any

from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.open import open_images, open_loose
from mpsoftmax.data.pairs import read_bin, read_pairs


def open_to_embed(spec: str | Path, **options: Any) -> ImageSet:
    """Open images to be embedded.

    Args:
        spec: What `open_images` opens; also folders and tars whose images lie in no class folder (labelled
            -1), an InsightFace .bin, and a list of pairs as LIST@FOLDER-OR-TAR: of pairs, each image once.
        **options: Handed to the reader.

    Raises:
        ValueError: nothing of that name, or malformed.
    """
    text = str(spec)
    path = Path(text)
    if path.suffix.lower() == ".bin":
        return read_bin(path).images
    listed, at, holder = text.partition("@")
    if at and not path.exists() and Path(listed).is_file():
        return open_listed(text, listed, holder, options)
    return open_loose(spec, **options)


def open_listed(spec: str, listed: str, holder: str, options: dict[str, Any]) -> ImageSet:
    """The images of a list of pairs, or of one with labels: no list is well-formed as both."""
    problem = "options are for lists with labels"
    if not options:
        try:
            return read_pairs(listed, holder).images
        except ValueError as error:
            problem = str(error)
    try:
        return open_images(spec, **options)
    except ValueError as error:
        raise ValueError(f"{error}; and as a list of pairs: {problem}") from error
