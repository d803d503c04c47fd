"""Errors planted into a data set whose labels are known, and where they lie."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mpsoftmax.data.image_set import ImageSet

LEAST_IMAGES, LEAST_SPLIT = 4, 6


@dataclass(frozen=True)
class Planted:
    """What was planted; images and classes by their number in the planted set.

    Attributes:
        swapped: (image, true class) of every image that was given another class.
        split: (class, the class made of half of its images).
    """

    swapped: list[tuple[int, int]]
    split: list[tuple[int, int]]

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> "Planted":
        """What `save` wrote."""
        tree = json.loads(path.read_text())
        return Planted(
            [tuple(one) for one in tree["swapped"]], [tuple(one) for one in tree["split"]]
        )


class Relabelled:
    """A set with other labels and more classes; an ``ImageSet``."""

    def __init__(self, images: ImageSet, labels: np.ndarray, class_names: list[str]) -> None:
        self.labels, self.class_names = labels, class_names
        self.image, self.name = images.image, images.name

    def __len__(self) -> int:
        return len(self.labels)


def plant(
    images: ImageSet, *, swapped: float, split: float, seed: int
) -> tuple[Relabelled, Planted]:
    """Give some images the label of another class, and make two classes of some.

    Only classes of at least 4 images take part in swaps (nobody could tell which of two images is the
    wrong one), of at least 6 in splits.

    Args:
        images: The set.
        swapped: Share of the images of classes that take part.
        split: Share of the classes that take part.
        seed: Of what is drawn.
    """
    draw = np.random.default_rng(seed)
    labels = np.array(images.labels)
    counts = np.bincount(labels[labels >= 0], minlength=len(images.class_names))
    names = [str(name) for name in images.class_names]
    splittable = np.flatnonzero(counts >= LEAST_SPLIT)
    pairs = []
    for number in np.sort(draw.choice(splittable, round(split * len(splittable)), replace=False)):
        members = draw.permutation(np.flatnonzero(labels == number))
        labels[members[: len(members) // 2]] = len(names)
        pairs.append((int(number), len(names)))
        names.append(f"{names[number]}-again")
    open_classes = np.setdiff1d(np.flatnonzero(counts >= LEAST_IMAGES), [a for a, _ in pairs])
    places = np.flatnonzero(np.isin(labels, open_classes))
    moved = []
    for place in np.sort(draw.choice(places, round(swapped * len(places)), replace=False)):
        true = int(labels[place])
        labels[place] = draw.choice(open_classes[open_classes != true])
        moved.append((int(place), true))
    return Relabelled(images, labels, names), Planted(moved, pairs)
