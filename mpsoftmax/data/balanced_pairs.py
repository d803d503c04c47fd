"""Verification pairs from labelled images: as many of one class as of different ones, in ten folds."""

from __future__ import annotations

import numpy as np

NUM_FOLDS = 10
_PAIRS_A_CLASS = 100
"""Of one class at most, so that a class of thousands of images is not most of the set."""


def class_pairs(labels: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the same and of different classes, in 10 contiguous folds.

    Same: the classes take turns, each giving another pair of its images, none twice. Different: two classes
    drawn uniformly, one image of each.

    Args:
        labels: int64 [n]; images labelled -1 are in no pair.
        most: largest number of pairs; fewer where the classes give fewer, always a multiple of 20.
        seed: chooses the pairs.

    Returns:
        (pairs int64 [P, 2] of image indices, same bool [P]).

    Raises:
        ValueError: not even ten pairs of each kind.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, most], np.uint64)))
    kept = np.flatnonzero(labels >= 0)
    members = [kept[rows] for rows in members_of(labels[kept])]
    same = _taking_turns([_pairs_within(rows, rng) for rows in members], most // 2, rng)
    sizes = np.array([len(rows) for rows in members], np.int64)
    apart = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
    half = min(len(same), apart) // NUM_FOLDS * NUM_FOLDS
    if half == 0:
        raise ValueError(
            f"{len(members)} classes give {len(same)} pairs of the same class and {apart} of different ones; "
            f"expected at least {NUM_FOLDS} of each"
        )
    return in_folds(rng.permutation(same[:half]), different_pairs(members, half, rng))


def _pairs_within(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some pairs of a class in random order, int64 [k, 2], none twice: all neighbours on random rounds."""
    order = rng.permutation(rows)
    found = [np.empty((0, 2), np.int64)]
    for step in range(1, len(rows) // 2 + 1):
        partners = np.roll(order, -step)
        pairs = np.stack([order, partners], axis=1)
        found.append(pairs[: len(rows) // 2] if 2 * step == len(rows) else pairs)
        if sum(map(len, found)) >= _PAIRS_A_CLASS:
            break
    return np.concatenate(found)[:_PAIRS_A_CLASS]


def _taking_turns(waiting: list[np.ndarray], num: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [at most num, 2]: in each round one more pair of every class that still has one."""
    order = rng.permutation(len(waiting))
    pairs: list[np.ndarray] = []
    for turn in range(max((len(one) for one in waiting), default=0)):
        pairs += [waiting[k][turn] for k in order if turn < len(waiting[k])]
        if len(pairs) >= num:
            break
    return np.array(pairs[:num], np.int64).reshape(-1, 2)


def members_of(labels: np.ndarray) -> list[np.ndarray]:
    """Indices of the images of each class that has any, in order."""
    order = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, bounds)


def different_pairs(members: list[np.ndarray], num: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [num, 2]: two classes drawn uniformly, one image of each; no pair twice, of as many at least."""
    pairs: dict[tuple[int, int], None] = {}  # in the order drawn
    while len(pairs) < num:
        one, other = rng.integers(len(members), size=2)
        if one != other:
            pair = (int(rng.choice(members[one])), int(rng.choice(members[other])))
            pairs.setdefault((min(pair), max(pair)))
    return np.array(list(pairs), np.int64)


def in_folds(same: np.ndarray, different: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As many pairs of either kind, int64 [m, 2], as 10 folds, each first its same pairs, then the others."""
    shape = (NUM_FOLDS, len(same) // NUM_FOLDS, 2)
    pairs = np.concatenate([same.reshape(shape), different.reshape(shape)], axis=1).reshape(-1, 2)
    return pairs, np.tile(np.repeat([True, False], len(same) // NUM_FOLDS), NUM_FOLDS)
