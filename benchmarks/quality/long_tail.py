"""Long-tailed class sizes imposed on a balanced set."""

import numpy as np
import torch
from sources import SHARED
from torch import Tensor

NUM_HELD_OUT = 5
GROUPS = {"tail": (1, 2), "middle": (3, 6), "head": (7, 10**9)}
"""Class sizes in training (from, to) of the groups that closed-set figures are given for."""


def impose(labels: Tensor, kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images to train on and images held out, of every class.

    Five images of each class are held out (a class with fewer than six gives none); of the rest as many are
    trained on as its drawn size says.

    Args:
        labels: int64 [n].
        kind: "steep": the largest class has all it can, the class of rank share u has a share 0.02 ** u of
            that, at least one; "celeba": CelebA's own sizes, scaled to the largest class.
        seed: Of the drawing.

    Returns:
        Positions int64 [k] to train on and int64 [h] held out.
    """
    random = np.random.default_rng(seed)
    classes = labels.numpy()
    num_classes = classes.max() + 1
    shares = random.permutation(size_shares(kind, num_classes))
    trained, held_out = [], []
    for label in range(num_classes):
        images = random.permutation(np.flatnonzero(classes == label))
        num_held = NUM_HELD_OUT if len(images) > NUM_HELD_OUT else 0
        rest = images[num_held:]
        trained.append(rest[: max(1, round(shares[label] * len(rest)))])
        held_out.append(images[:num_held])
    return torch.from_numpy(np.concatenate(trained)), torch.from_numpy(np.concatenate(held_out))


def size_shares(kind: str, num_classes: int) -> np.ndarray:
    """Size of each class as a share of the largest, float64 [num_classes], from large to small."""
    rank = (np.arange(num_classes) + 0.5) / num_classes
    if kind == "steep":
        return 0.02**rank
    if kind == "celeba":
        sizes = np.loadtxt(SHARED / "class_sizes_celeba.txt")
        return sizes[(rank * len(sizes)).astype(int)] / sizes.max()
    raise ValueError(f"tail: {kind!r}; allowed: steep, celeba")


def group_of_sizes(sizes: Tensor) -> dict[str, Tensor]:
    """Which classes are of which group: bool [num_classes] each, by training images int64."""
    return {name: (sizes >= low) & (sizes <= high) for name, (low, high) in GROUPS.items()}
