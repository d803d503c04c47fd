"""A reviewed view of a data set: images left out, given another class, classes made one; nothing is copied.

A `.view.json` file names the set it looks at and says what is different:

    {"format": 1, "source": "faces.tar", "fingerprint": {"num_images", "labels_sha256", "names_sha256"},
     "drop": [image, ...], "relabel": [[image, class], ...], "merge": [[class, class], ...]}

Images and classes are numbers of the source. A path that is not absolute is relative to the view's folder.
Classes that lose all their images lose their number: those that are left keep their order and their names. An
image of a class that is merged gets the class it is merged into, also after a relabel.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpsoftmax.data.image_set import IGNORE, ImageSet, Subset
from mpsoftmax.data.new_files import new_files
from mpsoftmax.data.path_lists import SUFFIXES as LIST_SUFFIXES

SUFFIX = ".view.json"
FORMAT = 1


def fingerprint(images: ImageSet) -> dict[str, Any]:
    """What tells a set from another one, or from itself in another order: labels, image and class names.

    Image names go without their folders: a set may be moved.
    """
    names = hashlib.sha256()
    for name in images.class_names:
        names.update(str(name).encode("utf-8", "surrogateescape") + b"\0")
    for index in range(len(images)):
        last = images.name(index).rpartition("/")[2]
        names.update(last.encode("utf-8", "surrogateescape") + b"\0")
    labels = np.ascontiguousarray(images.labels, dtype=np.int64)
    return {
        "num_images": len(images),
        "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest()[:16],
        "names_sha256": names.hexdigest()[:16],
    }


def final_classes(merge: Sequence[tuple[int, int]], num_classes: int) -> np.ndarray:
    """The class that each class becomes, int64 [num_classes]; chains and rings of pairs become one class.

    Of classes that are merged the lowest number stays.
    """
    parent = list(range(num_classes))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for a, b in merge:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.array([root(one) for one in range(num_classes)], dtype=np.int64)


class Relabelled:
    """A set under other labels; an ``ImageSet``. The classes are those of the set."""

    def __init__(self, images: ImageSet, labels: np.ndarray) -> None:
        self.images, self.labels, self.class_names = images, labels, images.class_names

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> bytes | np.ndarray:
        """As the set gives it."""
        return self.images.image(index)

    def name(self, index: int) -> str:
        """As the set gives it."""
        return self.images.name(index)


def view_of(
    images: ImageSet,
    *,
    drop: Sequence[int],
    relabel: Mapping[int, int],
    merge: Sequence[tuple[int, int]],
) -> Subset:
    """The set without some images, some under another class, some classes as one.

    Raises:
        ValueError: an image or a class that the set has not, an image both dropped and relabelled, or no
            image left.
    """
    num, classes = len(images), len(images.class_names)
    for what, values, limit in (
        ("drop", list(drop), num),
        ("relabel", list(relabel), num),
        ("relabel to", list(relabel.values()), classes),
        ("merge", [one for pair in merge for one in pair], classes),
    ):
        bad = [value for value in values if not 0 <= value < limit]
        if bad:
            raise ValueError(f"view: {what} {bad[0]}; allowed: 0..{limit - 1}")
    both = sorted(set(drop) & set(relabel))
    if both:
        raise ValueError(f"view: image {both[0]} is both dropped and relabelled")
    labels = np.array(images.labels, dtype=np.int64)
    labels[list(relabel)] = list(relabel.values())
    known = labels != IGNORE
    labels[known] = final_classes(merge, classes)[labels[known]]
    kept = np.setdiff1d(np.arange(num, dtype=np.int64), np.array(list(drop), dtype=np.int64))
    if not len(kept):
        raise ValueError("view: no image is left")
    before = np.unique(images.labels[images.labels != IGNORE])
    had_none = np.setdiff1d(np.arange(classes), before)  # empty before: not this view's doing
    left = np.union1d(np.unique(labels[kept][labels[kept] != IGNORE]), had_none)
    return Subset(Relabelled(images, labels), kept, left.astype(np.int64))


def write_view(
    path: Path,
    source: str | Path,
    images: ImageSet,
    *,
    drop: Sequence[int],
    relabel: Mapping[int, int],
    merge: Sequence[tuple[int, int]],
) -> Subset:
    """Write a view of a set that `open_images(source)` gave, and open it.

    Raises:
        ValueError: the name does not end in .view.json, the file exists, or as `view_of`.
    """
    if not path.name.endswith(SUFFIX):
        raise ValueError(f"view: {path}; allowed: a name ending in {SUFFIX}")
    view = view_of(images, drop=drop, relabel=relabel, merge=merge)
    known = str(source) in ("glyphs", "synthetic")
    tree = {
        "format": FORMAT,
        "source": str(source) if known else moved(str(source), path.parent, os.path.relpath),
        "fingerprint": fingerprint(images),
        "drop": sorted(map(int, drop)),
        "relabel": sorted([int(a), int(b)] for a, b in relabel.items()),
        "merge": [[int(a), int(b)] for a, b in merge],
    }
    with new_files(path) as (temporary,):
        temporary.write_text(json.dumps(tree) + "\n", encoding="utf-8", errors="surrogateescape")
    return view


def moved(source: str, folder: Path, move: Callable[[str, Path], str]) -> str:
    """A set's name with its path, or the paths of LIST@FOLDER-OR-TAR, from or to `folder`."""
    first, at, holder = source.partition("@")
    if at and Path(first).suffix.lower() in LIST_SUFFIXES:
        return f"{move(first, folder)}@{move(holder, folder)}"
    return move(source, folder)


def open_view(path: str | Path, **options: Any) -> ImageSet:
    """Open a .view.json.

    Args:
        path: The file.
        **options: Handed to the source's reader; must be what the view was made with.

    Raises:
        ValueError: damaged, or its source is not the set it was made for.
    """
    from mpsoftmax.data.open import open_images

    file = Path(path)
    try:
        tree = json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: a view (JSON) expected: {error}") from error
    check_tree(file, tree)
    source = str(tree["source"])
    if source.endswith(SUFFIX):
        raise ValueError(f"{file}: a view of a view ({source}); allowed: a view of the set itself")
    known = source in ("glyphs", "synthetic")
    place = source if known else moved(source, file.parent, lambda part, folder: str(folder / part))
    images = open_images(place, **options)
    found = fingerprint(images)
    if found != tree["fingerprint"]:
        raise ValueError(
            f"{file}: made for a set with {tree['fingerprint']}, but {place} has {found}; allowed: that set, "
            "unchanged"
        )
    try:
        merge = [(a, b) for a, b in tree["merge"]]
        return view_of(images, drop=tree["drop"], relabel=dict(tree["relabel"]), merge=merge)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_tree(file: Path, tree: Any) -> None:
    """Raise ValueError unless every field of a view is of its type."""

    def whole(values: Any) -> bool:
        return isinstance(values, list) and all(type(one) is int for one in values)

    def pairs(values: Any) -> bool:
        return isinstance(values, list) and all(whole(one) and len(one) == 2 for one in values)

    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"{file}: a view of format {FORMAT} expected")
    good = isinstance(tree.get("source"), str) and isinstance(tree.get("fingerprint"), dict)
    good = good and whole(tree.get("drop"))
    if not (good and pairs(tree.get("relabel")) and pairs(tree.get("merge"))):
        raise ValueError(f"{file}: damaged: source, fingerprint, drop, relabel and merge expected")
