"""Identities dealt into baskets: each has its own label space, some identities occur in all of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Dealt:
    """Labels after dealing: classes of basket b follow those of basket b - 1."""

    labels: Tensor
    """int64 [n]: class of each image, a pair (basket, identity) numbered."""
    sizes: tuple[int, ...]
    """Classes of each basket."""
    identities: Tensor
    """int64 [num_classes]: the identity of each class."""


def deal(labels: Tensor, num_baskets: int, overlap: float, seed: int = 0) -> Dealt:
    """Deal identities (and their images) into baskets.

    A share `overlap` of the identities occurs in every basket: their images are dealt among the baskets in
    turn, in random order. Each of the others lies in one basket with all its images, in turn as well.

    Args:
        labels: int64 [n], identity of each image, 0 .. m - 1.
        num_baskets: Baskets, 1 or more.
        overlap: Share of the identities in [0, 1].
        seed: Of the dealing.
    """
    random = np.random.default_rng(seed)
    identities = labels.numpy()
    order = random.permutation(identities.max() + 1)
    num_shared = round(overlap * len(order))
    basket = np.empty(len(identities), dtype=np.int64)
    for place, identity in enumerate(order):
        images = random.permutation(np.flatnonzero(identities == identity))
        start = random.integers(num_baskets)
        turn = (start + np.arange(len(images))) % num_baskets
        basket[images] = turn if place < num_shared else place % num_baskets
    keys, classes = np.unique(np.stack([basket, identities]), axis=1, return_inverse=True)
    sizes = np.bincount(keys[0], minlength=num_baskets)
    return Dealt(
        torch.from_numpy(classes.reshape(-1).astype(np.int64)),
        tuple(sizes.tolist()),
        torch.from_numpy(keys[1].astype(np.int64)),
    )


def duplicate_pairs(identities: Tensor) -> Tensor:
    """All pairs of classes of one identity: int64 [p, 2], the lower class first."""
    order = torch.argsort(identities, stable=True)
    pairs = []
    for distance in range(1, int(torch.bincount(identities).max())):
        first, second = order[:-distance], order[distance:]
        same = identities[first] == identities[second]
        pairs.append(torch.stack([first[same], second[same]], dim=1))
    return torch.cat(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64)
