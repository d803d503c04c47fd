"""A folder per class, on disk or inside a tar that stays packed.

The class of an image is the path of the folder it lies in, relative to the root, with ``/``
between levels. **Classes are ordered by plain string sort of that path** (by code point, as
torchvision and im2rec do; not "natural" sort, where ``10`` follows ``9``), and so are the images
within a class by file name. A folder and a tar of it therefore give the same labels and order,
whatever the order inside the archive. Files that are no images by suffix, hidden ones (a path
part starting with a dot), links and devices in a tar, and images outside any class folder are not
used; they are listed in ``problems``.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpsoftmax.data.image_set import IGNORE
from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.string_table import StringTable
from mpsoftmax.data.tar_index import TarIndex, index_tar

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Image files under a root folder; an ``ImageSet``.

    Attributes:
        root: The folder.
        paths: Path of each sample relative to ``root``, with ``/``.
        labels: int64 [n].
        class_names: Folder path of each class relative to ``root``.
        problems: What was found and not used.
    """

    root: Path
    paths: Sequence[str]
    labels: np.ndarray
    class_names: Sequence[str]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> bytes:
        """The file's bytes."""
        # Two thirds of a buffered file's cost are its Python objects and questions to the system.
        file = os.open(f"{self.root}/{self.paths[index]}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            data = os.read(file, size)
            while len(data) < size and (more := os.read(file, size - len(data))):
                data += more
            return data
        finally:
            os.close(file)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.paths[index])


@dataclass(frozen=True, eq=False)
class TarImages:
    """Image files inside an uncompressed tar, read in place; an ``ImageSet``.

    Attributes:
        file: The archive.
        under: Folder inside the archive that paths are relative to; empty: the archive's root.
        paths: Path of each sample relative to ``under``.
        offsets: int64 [n], where a sample's bytes begin.
        sizes: int64 [n], bytes.
        labels: int64 [n].
        class_names: Folder path of each class relative to ``under``.
        problems: What was found and not used.
    """

    file: PositionalFile
    under: str
    paths: Sequence[str]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> bytes:
        """The member's bytes."""
        size = int(self.sizes[index])
        return self.file.read(int(self.offsets[index]), size, f"member {self.paths[index]}")

    def name(self, index: int) -> str:
        """``archive.tar:path/of/member``."""
        return f"{self.file.path}:{_prefix(self.under)}{self.paths[index]}"


def open_folder(
    path: str | os.PathLike[str], under: str = "", *, loose: bool = False
) -> FolderImages:
    """Read a folder per class; the rules are in this module's description.

    Args:
        path: Root folder. Links to folders are followed, each folder once.
        under: Folder below ``path`` to take instead.
        loose: Take images outside any class folder too: first in order, labelled -1.

    Raises:
        ValueError: No such folder, or no image in it.
    """
    root = Path(path) / under.strip("/")
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    problems: list[str] = []
    kept = [name for name in _walk(root, problems) if _usable(name, problems, loose)]
    order, labels, class_names = _arrange(kept)
    if not kept:
        raise ValueError(f"{root}: no images found{_where(loose)}{_examples(problems)}")
    return FolderImages(
        root, StringTable(kept[i] for i in order), labels, class_names, tuple(problems)
    )


def open_tar(
    path: str | os.PathLike[str],
    under: str = "",
    index: TarIndex | None = None,
    *,
    loose: bool = False,
) -> TarImages:
    """Read a folder per class inside an uncompressed tar without unpacking it.

    Headers are read once; images are then read in place. Of members with the same name the last
    counts, as when unpacking.

    Args:
        path: The archive.
        under: Folder inside it to take instead of its root.
        index: Of this archive, where it was made before.
        loose: As for `open_folder`.

    Raises:
        ValueError: Damaged or compressed archive, or no image in it.
    """
    file = PositionalFile(path)
    index = index_tar(file) if index is None else index
    problems = list(index.problems)
    prefix = _prefix(under)
    found: dict[str, int] = {}
    for position, name in enumerate(index.names):
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        if name in found:
            problems.append(f"{name}: several members of this name, the last is used")
            found[name] = position
        elif _usable(name, problems, loose):
            found[name] = position
    if not found:
        where = f"{file.path}:{prefix}" if prefix else str(file.path)
        raise ValueError(f"{where}: no images found{_where(loose)}{_examples(problems)}")
    kept = list(found)
    order, labels, class_names = _arrange(kept)
    members = np.fromiter((found[kept[i]] for i in order), dtype=np.int64, count=len(kept))
    return TarImages(
        file=file,
        under=under.strip("/"),
        paths=StringTable(kept[i] for i in order),
        offsets=index.offsets[members],
        sizes=index.sizes[members],
        labels=labels,
        class_names=class_names,
        problems=tuple(problems),
    )


def _prefix(under: str) -> str:
    return f"{under.strip('/')}/" if under.strip("/") else ""


def _where(loose: bool) -> str:
    return "" if loose else " in class folders"


def _examples(problems: Sequence[str]) -> str:
    return f" (not used: {'; '.join(problems[:3])})" if problems else ""


def _walk(root: Path, problems: list[str]) -> Iterable[str]:
    """Paths of all files below ``root``, relative to it."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        subfolders.sort()  # which of two links to a folder comes first must not be left to chance
        info = os.stat(folder)
        relative = Path(folder).relative_to(root).as_posix()
        if (info.st_dev, info.st_ino) in seen:
            problems.append(f"{relative}: folder reached twice through a link, not used again")
            subfolders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        if not files and not subfolders:
            problems.append(f"{relative}: empty folder")
        for name in files:
            yield name if relative == "." else f"{relative}/{name}"


def _unreadable(error: OSError) -> None:
    raise ValueError(f"{error.filename}: folder cannot be read: {error.strerror}") from error


def _usable(path: str, problems: list[str], loose: bool) -> bool:
    folder, _, name = path.rpartition("/")
    if path.startswith(".") or "/." in path:
        problems.append(f"{path}: hidden file, not used")
    elif not name.lower().endswith(IMAGE_SUFFIXES):
        problems.append(f"{path}: not an image by its suffix, not used")
    elif not folder and not loose:
        problems.append(f"{path}: outside any class folder, not used")
    else:
        return True
    return False


def _arrange(paths: Sequence[str]) -> tuple[Sequence[int], np.ndarray, StringTable]:
    """Order of the paths by (class, file name), the labels in that order, the class names.

    What lies in no folder comes first and is labelled -1.
    """
    keys = [path.rpartition("/")[::2] for path in paths]
    order = sorted(range(len(paths)), key=keys.__getitem__)
    names = sorted({folder for folder, _ in keys if folder})
    class_of = {"": IGNORE, **{name: label for label, name in enumerate(names)}}
    labels = np.fromiter((class_of[keys[i][0]] for i in order), dtype=np.int64, count=len(order))
    return order, labels, StringTable(names)
