"""Which pairs of a verification set a model gets most wrong: what a person should look at."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """The pairs of one evaluation, as the model saw them."""

    similarity: np.ndarray
    """float64 [P], cosines."""
    same: np.ndarray
    """bool [P]."""
    pairs: np.ndarray
    """int64 [P, 2], indices of images."""
    name: Callable[[int], str]
    """Where an image comes from."""
    picture: Callable[[int], str]
    """An image as a data URI, as the model sees it."""


def hardest_pairs(
    similarity: np.ndarray, same: np.ndarray, pairs: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The least similar genuine and the most similar impostor pairs, hardest first.

    An image is shown once a kind: one bad image would fill the list with its own pairs.

    Args:
        similarity: float [P].
        same: bool [P].
        pairs: int64 [P, 2].
        count: most pairs of a kind.

    Returns:
        Positions int64 [<= count] of genuine and of impostor pairs; of equals the first comes first.
    """
    genuine = np.flatnonzero(same)
    impostor = np.flatnonzero(~same)
    return (
        _without_repeats(genuine[np.argsort(similarity[genuine], kind="stable")], pairs, count),
        _without_repeats(impostor[np.argsort(-similarity[impostor], kind="stable")], pairs, count),
    )


def _without_repeats(order: np.ndarray, pairs: np.ndarray, count: int) -> np.ndarray:
    seen: set[int] = set()
    kept: list[int] = []
    for position in order.tolist():
        images = set(pairs[position].tolist())
        if len(kept) == count:
            break
        if not images & seen:
            seen |= images
            kept.append(position)
    return np.array(kept, np.int64)
