"""Images of a folder or of an uncompressed tar, chosen by their paths."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mpsoftmax.data.folder import FolderImages, TarImages
from mpsoftmax.data.image_set import IGNORE, ImageSet
from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.string_table import StringTable
from mpsoftmax.data.tar_index import index_tar


def paths_in(root: Path) -> list[str]:
    """Paths of all files below a folder or in a tar, relative to it, sorted.

    Raises:
        ValueError: no such folder or tar, or a damaged one.
    """
    if root.is_dir():
        found = []
        for folder, _, files in os.walk(root):
            below = Path(folder).relative_to(root).as_posix()
            found += [name if below == "." else f"{below}/{name}" for name in files]
        return sorted(found)
    if not root.exists():
        raise ValueError(f"{root}: no such folder or tar")
    return sorted(set(index_tar(PositionalFile(root)).names))


def named_files(root: Path, paths: Sequence[str], where: Callable[[int], str]) -> ImageSet:
    """The named files of a folder or tar, in this order, labelled -1.

    Args:
        root: Folder or tar.
        paths: Relative to it; not outside it.
        where: What asks for the file of a number, for messages.

    Raises:
        ValueError: A file is missing, or the tar is damaged.
    """
    labels = np.full(len(paths), IGNORE, dtype=np.int64)
    if root.is_dir():
        for number, path in enumerate(paths):
            if not (root / path).is_file():
                raise ValueError(f"{where(number)}: no file {path!r} in {root}")
        return FolderImages(root, StringTable(paths), labels, ())
    if not root.exists():
        raise ValueError(f"{root}: no such folder or tar")
    file = PositionalFile(root)
    index = index_tar(file)
    member = {name: number for number, name in enumerate(index.names)}
    for number, path in enumerate(paths):
        if path not in member:
            raise ValueError(f"{where(number)}: no member {path!r} in {root}")
    chosen = np.array([member[path] for path in paths], dtype=np.int64)
    return TarImages(
        file, "", StringTable(paths), index.offsets[chosen], index.sizes[chosen], labels, ()
    )
