"""Files of a folder or of an uncompressed tar, chosen by their paths."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from mpsoftmax.data.folder import FolderImages, TarImages
from mpsoftmax.data.image_set import IGNORE
from mpsoftmax.data.near_names import near_name
from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.string_table import StringTable
from mpsoftmax.data.tar_index import index_tar


def tidy(path: str) -> str:
    """A path of a list without surrounding blanks and a leading ``./``."""
    return path.strip().removeprefix("./")


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


def files_of(
    root: Path,
    paths: Sequence[str],
    where: Callable[[int], str],
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> FolderImages | TarImages:
    """The named files of a folder or uncompressed tar, in this order.

    Args:
        root: Folder or tar.
        paths: Relative to it.
        where: Says where the list names a file, for messages.
        labels: int64 [n]; None: all are ignored, as those of pairs.
        class_names: One a class.

    Raises:
        ValueError: A path that is not inside ``root``, or is missing there; names list and line.
    """
    labels = np.full(len(paths), IGNORE, dtype=np.int64) if labels is None else labels
    for number, path in enumerate(paths):
        if not path or path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{where(number)}: path inside {root} expected, found {path!r}")
    if root.is_dir():
        for number, path in enumerate(paths):
            if not (root / path).is_file():
                raise ValueError(
                    f"{where(number)}: no file {path!r} in {root}{near_name(root / path)}"
                )
        return FolderImages(root, StringTable(paths), labels, class_names)
    if not root.exists():
        raise ValueError(f"{root}: no such folder or tar{near_name(root)}")
    file = PositionalFile(root)
    index = index_tar(file)
    member = {name: number for number, name in enumerate(index.names)}
    for number, path in enumerate(paths):
        if path not in member:
            raise ValueError(f"{where(number)}: no member {path!r} in {root}")
    chosen = np.array([member[path] for path in paths], dtype=np.int64)
    offsets, sizes = index.offsets[chosen], index.sizes[chosen]
    return TarImages(file, "", StringTable(paths), offsets, sizes, labels, class_names)
