"""Classes held back from training, to judge the model on identities it never saw."""

import numpy as np

from mpsoftmax.data.image_set import IGNORE, ImageSet, Subset

FEWEST_CLASSES = 2
"""Left for training."""


def hold_back(images: ImageSet, num: int, seed: int) -> tuple[Subset, Subset]:
    """Split a set by classes: (those trained on, those held back).

    The same classes for the same set, number and seed, whatever the machine. Only classes of at least two
    images are held back; images labelled -1 stay with the training part.

    Args:
        images: The whole set.
        num: Classes to hold back.
        seed: Chooses them.

    Raises:
        ValueError: Fewer classes have two images, or fewer than two would be left for training.
    """
    labels, num_classes = images.labels, len(images.class_names)
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    candidates = np.flatnonzero(counts >= 2)
    if num > len(candidates) or num > num_classes - FEWEST_CLASSES:
        raise ValueError(
            f"{num} classes to hold back; allowed: at most "
            f"{max(0, min(len(candidates), num_classes - FEWEST_CLASSES))} of these {num_classes} classes, "
            f"{len(candidates)} of which have two images"
        )
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, num], np.uint64)))
    held = np.zeros(num_classes, dtype=bool)
    held[rng.choice(candidates, num, replace=False)] = True
    of_held = held[labels] & (labels != IGNORE)
    return (
        Subset(images, np.flatnonzero(~of_held), np.flatnonzero(~held)),
        Subset(images, np.flatnonzero(of_held), np.flatnonzero(held)),
    )
