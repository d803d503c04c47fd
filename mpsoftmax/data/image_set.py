"""What a collection of labelled images is, and views of one."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

IGNORE = -1


@runtime_checkable
class ImageSet(Protocol):
    """A labelled collection readable in any order.

    Picklable, and safe to use in a forked worker: file handles are opened when first needed.
    A set may also have ``problems: tuple[str, ...]``, what its reader noticed and did not use;
    ``mpsoftmax inspect`` lists it.
    """

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]: class index 0 .. num_classes-1, or -1 = ignore this sample."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One name a class, by class index; its length is the number of classes."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> bytes | np.ndarray:
        """Encoded image bytes, or a decoded uint8 [H, W, 3] RGB array."""
        ...

    def name(self, index: int) -> str:
        """Where sample ``index`` comes from, for messages: file path, record key, code point."""
        ...


class WithoutClasses:
    """What an ``ImageSet`` of `items` says where nothing is known of classes."""

    items: Sequence[Any]

    @property
    def labels(self) -> np.ndarray:
        """int64 [n], all -1."""
        return np.full(len(self.items), IGNORE, dtype=np.int64)

    @property
    def class_names(self) -> Sequence[str]:
        """None."""
        return ()

    def __len__(self) -> int:
        return len(self.items)


def check_labels(
    labels: np.ndarray, num_classes: int, name: Callable[[int], str], source: str
) -> None:
    """Refuse labels that are neither -1 (ignore) nor a class.

    Args:
        labels: int64 [n].
        num_classes: Number of classes.
        name: Gives a sample's name from its index, for the message.
        source: The file or folder, for the message.

    Raises:
        ValueError: A label below -1 or >= ``num_classes``; names the first such sample.
    """
    bad = np.flatnonzero((labels < IGNORE) | (labels >= num_classes))
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{source}: label {int(labels[first])} of {name(first)} is out of range: expected"
            f" 0..{num_classes - 1}, or -1 to ignore the sample ({len(bad)} such samples)"
        )


def encoded(image: bytes | np.ndarray) -> bytes:
    """The bytes to store for an image: encoded ones unchanged, an array as PNG (lossless).

    Raises:
        ValueError: An array that is not uint8 [H, W, 3].
    """
    if isinstance(image, bytes):
        return image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"image array of dtype {image.dtype} and shape {image.shape}: expected uint8 [H, W, 3]"
        )
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True, eq=False)
class Subset:
    """A view of some samples and some classes of a set, relabelled compactly.

    Attributes:
        images: The set looked at.
        indices: int64 [n], its samples in this order.
        classes: int64 [num_classes], its class indices kept, ascending: class ``classes[k]``
            becomes class ``k``, so the order of the classes stays. Samples labelled -1 stay -1.
        labels: int64 [n], positions in ``classes``, or -1 (computed).
        class_names: Names of the kept classes (computed).

    Raises:
        ValueError: Indices or classes out of range, classes not ascending, or a sample whose
            class is not kept.
    """

    images: ImageSet
    indices: np.ndarray
    classes: np.ndarray
    labels: np.ndarray = field(init=False)
    class_names: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        num_images, num_classes = len(self.images), len(self.images.class_names)
        for name, values, limit in (
            ("indices", self.indices, num_images),
            ("classes", self.classes, num_classes),
        ):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
                raise ValueError(
                    f"Subset {name} span {values.min()}..{values.max()}: expected 0..{limit - 1}"
                )
        if np.any(np.diff(self.classes) <= 0):
            raise ValueError("Subset classes must be ascending and without repeats")
        old = self.images.labels[self.indices]
        lost = np.flatnonzero((old != IGNORE) & ~np.isin(old, self.classes))
        if len(lost):
            raise ValueError(
                f"Subset keeps sample {self.name(int(lost[0]))} but not its class {old[lost[0]]}"
            )
        new = np.searchsorted(self.classes, old).astype(np.int64)
        names = self.images.class_names
        if len(self.classes) < num_classes:
            names = tuple(names[int(k)] for k in self.classes)
        # The one way to fill computed fields of a frozen dataclass.
        object.__setattr__(self, "labels", np.where(old == IGNORE, np.int64(IGNORE), new))
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> bytes | np.ndarray:
        """Image of sample ``index`` of this view."""
        return self.images.image(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Name of sample ``index`` of this view, as the underlying set gives it."""
        return self.images.name(int(self.indices[index]))


def keep_classes(images: ImageSet, min_images: int) -> ImageSet:
    """Drop classes with fewer than ``min_images`` images; relabel compactly, keep class order.

    Samples labelled -1 stay, labelled -1.

    Raises:
        ValueError: ``min_images`` is negative, or no class is left.
    """
    if min_images < 0:
        raise ValueError(f"min_images is {min_images}: expected 0 or more")
    labels = images.labels
    counts = np.bincount(labels[labels >= 0], minlength=len(images.class_names))
    kept = counts >= min_images
    if not kept.any():
        raise ValueError(
            f"min_images is {min_images}: no class has that many images"
            f" (largest: {counts.max(initial=0)})"
        )
    if kept.all():
        return images
    indices = np.flatnonzero((labels == IGNORE) | kept[labels])
    return Subset(images, indices.astype(np.int64), np.flatnonzero(kept).astype(np.int64))


def keep_part(images: ImageSet, number: int, count: int) -> ImageSet:
    """Of every class the images number, number + count, ..., counted from 1 in the set's order.

    All classes stay, those without an image of the part too: see `keep_classes`. The parts 1 .. count of a
    set are disjoint and together the set; they hold the same identities in different images.

    Raises:
        ValueError: not 1 <= number <= count.
    """
    if not 1 <= number <= count:
        raise ValueError(f"part {number}/{count}: expected 1 <= number <= count")
    labels = images.labels
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    place = np.arange(len(labels)) - np.searchsorted(grouped, grouped)
    indices = np.sort(order[place % count == number - 1])
    return Subset(images, indices.astype(np.int64), np.arange(len(images.class_names)))
