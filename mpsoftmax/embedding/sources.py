"""What can be embedded: any image set, also without classes."""

from pathlib import Path
from typing import Any

from mpsoftmax.data.folder import open_folder, open_tar
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.open import open_images
from mpsoftmax.data.pairs import read_bin, read_pairs


def open_to_embed(spec: str | Path, **options: Any) -> ImageSet:
    """Open images to be embedded.

    Args:
        spec: What `open_images` opens; also folders and tars whose images lie in no class folder (labelled
            -1), an InsightFace .bin, and a pair list as LIST@FOLDER-OR-TAR: of pairs, each image once.
        **options: Handed to the reader.

    Raises:
        ValueError: nothing of that name, or malformed.
    """
    text = str(spec)
    path = Path(text)
    if path.suffix.lower() == ".bin":
        return read_bin(path).images
    if path.is_dir() and not (path / "train.rec").exists():
        return open_folder(path, loose=True, **options)
    if path.suffix.lower() == ".tar" and path.exists():
        return open_tar(path, loose=True, **options)
    listed, at, holder = text.partition("@")
    if at and not path.exists() and Path(listed).is_file():
        return read_pairs(listed, holder).images
    return open_images(spec, **options)
