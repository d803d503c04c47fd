"""Verification pairs over rendered characters: the same character in another font, or not."""

from __future__ import annotations

import numpy as np

from mpsoftmax.data.balanced_pairs import NUM_FOLDS, different_pairs, in_folds, members_of
from mpsoftmax.data.glyphs import Glyphs


def glyph_pairs(images: Glyphs, num_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Balanced pairs in 10 contiguous folds, each first its same pairs, then its different ones.

    Same: one character in two font families; the characters take turns, so that each gives about
    as many pairs. Different: two characters drawn uniformly, one image of each. No pair occurs
    twice.

    Args:
        images: rendered characters, as a rule the "open" split.
        num_pairs: P, a multiple of 20.
        seed: chooses the pairs.

    Returns:
        (pairs int64 [P, 2] of image indices, same bool [P]).

    Raises:
        ValueError: `num_pairs` is no positive multiple of 20, or the images give too few pairs.
    """
    if num_pairs <= 0 or num_pairs % (2 * NUM_FOLDS):
        raise ValueError(
            f"num_pairs: {num_pairs} is not a positive multiple of {2 * NUM_FOLDS}"
            f" ({NUM_FOLDS} folds, half of each the same character)"
        )
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, num_pairs], np.uint64)))
    members = members_of(images.labels)
    half = num_pairs // 2
    same = rng.permutation(_same_pairs(images, members, half, rng))
    _check_different(members, half)
    return in_folds(same, different_pairs(members, half, rng))


def _same_pairs(
    images: Glyphs, members: list[np.ndarray], num: int, rng: np.random.Generator
) -> np.ndarray:
    """int64 [num, 2]: in each round one more pair of every character that still has one."""
    waiting = []
    for number in rng.permutation(len(members)):
        rows = members[number]
        first, second = np.triu_indices(len(rows), k=1)
        other = images.families[rows[first]] != images.families[rows[second]]
        candidates = np.stack([rows[first[other]], rows[second[other]]], axis=1)
        if len(candidates):
            waiting.append(rng.permutation(candidates))
    available = sum(len(candidates) for candidates in waiting)
    if available < num:
        raise ValueError(
            f"num_pairs: {2 * num} needs {num} pairs of one character in two font families,"
            f" the images give {available}"
        )
    pairs: list[np.ndarray] = []
    for turn in range(max(len(candidates) for candidates in waiting)):
        pairs += [candidates[turn] for candidates in waiting if turn < len(candidates)]
        if len(pairs) >= num:
            break
    return np.stack(pairs[:num])


def _check_different(members: list[np.ndarray], num: int) -> None:
    """Refuse more pairs of two characters than there are."""
    sizes = np.array([len(rows) for rows in members], np.int64)
    available = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
    if available < num:
        raise ValueError(
            f"num_pairs: {2 * num} needs {num} pairs of different characters,"
            f" the images give {available}"
        )
