"""Pairs in order of similarity, and the figures that depend on that order alone.

A pair is accepted (called "same") at a threshold t if its similarity is >= t. All functions work
on R weightings of the pairs at once (R bootstrap replicates): r replicates, p pairs in descending
order of similarity, k cuts. A cut accepts the first ``cuts[k]`` sorted pairs; only cuts between
different similarities exist, so pairs of equal similarity are accepted together, or not at all.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Ranking:
    """Pairs sorted by similarity, most alike first.

    Attributes:
        similarity: float64 [p], descending.
        same: bool [p].
        fold: int64 [p], fold of each pair.
        order: int64 [p], position of each in the caller's arrays.
        cuts: int64 [k], ascending: 0 (nothing accepted), then the end of each run of equals.
    """

    similarity: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    order: np.ndarray
    cuts: np.ndarray


@dataclass(frozen=True, eq=False)
class Roc:
    """Accepted weight at each cut: int64 [r, k] of genuine and of impostor pairs."""

    genuine: np.ndarray
    impostor: np.ndarray


def rank_pairs(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> Ranking:
    """Sort the pairs: float64 [p], bool [p], int64 [p]."""
    order = np.argsort(-similarity, kind="stable")
    sorted_similarity = similarity[order]
    ends = np.flatnonzero(np.append(np.diff(sorted_similarity) != 0, True)) + 1
    cuts = np.concatenate(([0], ends))
    return Ranking(sorted_similarity, same[order], fold[order], order, cuts)


def accepted(weights: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Sum of the first ``cuts[k]`` weights: int64 [r, p], int64 [k] -> int64 [r, k]."""
    sums = np.zeros((len(weights), weights.shape[1] + 1), np.int64)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums[:, cuts]


def roc(ranking: Ranking, weights: np.ndarray) -> Roc:
    """The whole ROC curve. weights: int64 [r, p], in the ranking's order."""
    genuine = accepted(weights * ranking.same, ranking.cuts)
    return Roc(genuine, accepted(weights, ranking.cuts) - genuine)


def auc(curve: Roc) -> np.ndarray:
    """Area under the ROC curve, float64 [r]: the chance that a genuine pair is the more alike.

    A tie between a genuine and an impostor pair counts one half (Mann-Whitney).
    """
    steps = np.diff(curve.impostor, axis=1)
    heights = (curve.genuine[:, 1:] + curve.genuine[:, :-1]) / 2
    totals = curve.genuine[:, -1].astype(float) * curve.impostor[:, -1]
    return (steps * heights).sum(1) / totals


def equal_error_rate(curve: Roc) -> np.ndarray:
    """Rate at which false accepts equal false rejects, float64 [r].

    Between two neighbouring cuts the ROC curve is taken as the straight line (as for the AUC).
    """
    false_accept = curve.impostor / curve.impostor[:, -1:]
    difference = false_accept - (1 - curve.genuine / curve.genuine[:, -1:])  # from -1 up to 1
    after = (difference >= 0).argmax(1)[:, None]
    before = after - 1
    low = np.take_along_axis(difference, before, 1)
    high = np.take_along_axis(difference, after, 1)
    start = np.take_along_axis(false_accept, before, 1)
    stop = np.take_along_axis(false_accept, after, 1)
    return (start + (stop - start) * -low / (high - low))[:, 0]


def tar_at_far(curve: Roc, far: float) -> np.ndarray:
    """Largest true accept rate of a cut whose false accept rate is at most ``far``, float64 [r]."""
    allowed = far * curve.impostor[:, -1:] * (1 + 1e-12)  # 0.3 of 10 are 3, whatever the rounding
    last = (curve.impostor <= allowed).sum(1, keepdims=True) - 1
    return (np.take_along_axis(curve.genuine, last, 1) / curve.genuine[:, -1:])[:, 0]
