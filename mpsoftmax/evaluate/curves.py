"""What verification looks like: the ROC curve, and how genuine and impostor similarities are distributed."""

from dataclasses import dataclass

import numpy as np

NUM_POINTS = 200
NUM_BINS = 100


@dataclass(frozen=True)
class Curves:
    """Small enough to be kept for every evaluation."""

    far: np.ndarray
    """float64 [k], ascending: false accept rates, from 0 to 1, k <= NUM_POINTS."""
    tar: np.ndarray
    """float64 [k]: true accept rates."""
    edges: np.ndarray
    """float64 [NUM_BINS + 1]: cosine, -1 to 1."""
    genuine: np.ndarray
    """int64 [NUM_BINS]: pairs of the same class in each bin."""
    impostor: np.ndarray
    """int64 [NUM_BINS]: pairs of different classes."""


def curves(similarity: np.ndarray, same: np.ndarray) -> Curves:
    """Curves of pairs with both kinds among them.

    Args:
        similarity: float [P], cosines.
        same: bool [P].
    """
    far, tar = roc_points(similarity, same)
    edges = np.linspace(-1.0, 1.0, NUM_BINS + 1)
    clipped = np.clip(similarity, -1.0, 1.0)  # rounding
    genuine, impostor = (np.histogram(clipped[kind], edges)[0] for kind in (same, ~same))
    return Curves(far, tar, edges, genuine, impostor)


def roc_points(similarity: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR) at thresholds that spread evenly over log FAR: that is where ROC curves differ."""
    order = np.argsort(-similarity, kind="stable")
    ranked, genuine = similarity[order], same[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # ties are accepted together
    far = np.append(0.0, np.cumsum(~genuine)[last] / (~same).sum())
    tar = np.append(0.0, np.cumsum(genuine)[last] / same.sum())
    # Of the thresholds with one FAR, the last has the highest TAR.
    kept = np.append(np.flatnonzero(np.diff(far)), len(far) - 1)
    if len(kept) > NUM_POINTS:
        wanted = np.geomspace(far[kept[1]], 1.0, NUM_POINTS - 2)
        nearest = np.searchsorted(far[kept], wanted, side="right") - 1
        kept = kept[np.unique([0, *nearest.clip(1), len(kept) - 1])]
    return far[kept], tar[kept]
