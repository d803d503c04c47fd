"""Accuracy over consecutive folds, and the threshold it needs: exact, or on insightface's grid.

The threshold is chosen on all folds but one and applied to that one. Shapes as in ``ranking.py``:
r replicates, p pairs in descending order of similarity, k candidate thresholds, strictest first.
"""

from dataclasses import dataclass

import numpy as np

from mpsoftmax.evaluate.ranking import Ranking, accepted

GRID_STEP = 0.01  # of squared distances, for the accuracy
FINE_GRID_STEP = 0.001  # the same, for TAR at FAR
_GRID_END = 4.0


def fold_numbers(num_pairs: int, num_folds: int) -> np.ndarray:
    """Fold of each pair, int64 [p]: consecutive blocks, the first ``p % num_folds`` one longer."""
    sizes = np.full(num_folds, num_pairs // num_folds)
    sizes[: num_pairs % num_folds] += 1
    return np.repeat(np.arange(num_folds), sizes)


def squared_distance(similarity: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of unit vectors from their cosine."""
    return 2 - 2 * similarity


def grid_thresholds(step: float) -> np.ndarray:
    """Thresholds on the squared distance, 0 up to (not with) 4, as arcface_torch makes them."""
    return np.arange(0, _GRID_END, step)


def grid_cuts(ranking: Ranking, thresholds: np.ndarray) -> np.ndarray:
    """Pairs accepted at each threshold, squared distance < threshold: int64 [k]."""
    return np.searchsorted(squared_distance(ranking.similarity), thresholds, side="left")


@dataclass(frozen=True, eq=False)
class ExactRule:
    """Every threshold that tells the training pairs apart is a candidate.

    Of those equally good on the training pairs the strictest group is taken (fewest accepted
    training pairs), and from that group the midpoint between the last accepted and the first
    rejected training similarity. At an end without a neighbour the threshold accepts none of the
    pairs, or all of them.
    """

    ranking: Ranking

    @property
    def cuts(self) -> np.ndarray:
        """Candidate cuts, int64 [k]."""
        return self.ranking.cuts

    def threshold(self, best: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Similarity threshold, float64 [r].

        Args:
            best: int64 [r], number of the best candidate.
            present: bool [r, p], pairs that took part in the choice.
        """
        values = self.ranking.similarity
        cut = self.cuts[best]
        later = present & (np.arange(len(values)) >= cut[:, None])
        has_later = later.any(1)
        above = values[np.maximum(cut - 1, 0)]
        below = values[later.argmax(1)]
        middle = (above + below) / 2
        middle = np.where(middle > below, middle, above)  # neighbours in floating point
        middle = np.where(has_later, middle, values[-1])
        return np.where(cut == 0, np.nextafter(values[0], np.inf), middle)

    def num_accepted(self, threshold: np.ndarray) -> np.ndarray:
        """Number of sorted pairs accepted, int64 [r]."""
        return np.searchsorted(-self.ranking.similarity, -threshold, side="right")


class GridRule:
    """insightface's: squared distance below 0, 0.01, ..., 3.99; the smallest of the best.

    ``arcface_torch/eval/verification.py``; its thresholds are given here as similarities, and a
    pair exactly on the threshold is rejected.
    """

    def __init__(self, ranking: Ranking) -> None:
        self._thresholds = grid_thresholds(GRID_STEP)
        self.cuts = grid_cuts(ranking, self._thresholds)

    def threshold(self, best: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Similarity threshold, float64 [r]; ``present`` does not matter on a grid."""
        return 1 - self._thresholds[best] / 2

    def num_accepted(self, threshold: np.ndarray) -> np.ndarray:
        """Number of sorted pairs accepted, int64 [r]."""
        return self.cuts[np.rint((1 - threshold) * 2 / GRID_STEP).astype(np.int64)]


def best_threshold(
    ranking: Ranking, weights: np.ndarray, rule: ExactRule | GridRule
) -> tuple[np.ndarray, np.ndarray]:
    """The most accurate threshold: int64 [r, p] -> thresholds float64 [r], accuracies [r]."""
    sign = np.where(ranking.same, 1, -1)
    score = accepted(weights * sign, rule.cuts)  # correct pairs, but for a constant
    best = score.argmax(1)
    constant = (weights * ~ranking.same).sum(1)
    correct = np.take_along_axis(score, best[:, None], 1)[:, 0] + constant
    return rule.threshold(best, weights > 0), correct / weights.sum(1)


def fold_accuracies(
    ranking: Ranking, weights: np.ndarray, rule: ExactRule | GridRule
) -> np.ndarray:
    """Accuracy of each fold at the threshold chosen on the others: int64 [r, p] -> [r, folds]."""
    correct = weights * fold_correct(ranking, weights, rule)
    folds = [ranking.fold == fold for fold in range(int(ranking.fold.max()) + 1)]
    results = [(correct * tested).sum(1) / (weights * tested).sum(1) for tested in folds]
    return np.stack(results, 1)


def fold_correct(ranking: Ranking, weights: np.ndarray, rule: ExactRule | GridRule) -> np.ndarray:
    """Whether each pair is judged right at the threshold chosen on the other folds: bool [r, p]."""
    correct = np.zeros(weights.shape, bool)
    for fold in range(int(ranking.fold.max()) + 1):
        tested = ranking.fold == fold
        threshold, _ = best_threshold(ranking, weights * ~tested, rule)
        is_accepted = np.arange(len(tested)) < rule.num_accepted(threshold)[:, None]
        correct |= tested & (is_accepted == ranking.same)
    return correct


def fold_tar_at_far(ranking: Ranking, weights: np.ndarray, far: float) -> np.ndarray:
    """TAR at FAR as insightface takes it, mean over the folds: int64 [r, p] -> float64 [r].

    The distance threshold is interpolated, on the other folds, between the two steps of the fine
    grid whose false accept rates enclose ``far`` (below the first step: 0; nothing is accepted).
    """
    thresholds = grid_thresholds(FINE_GRID_STEP)
    cuts = grid_cuts(ranking, thresholds)
    distance = squared_distance(ranking.similarity)
    results = []
    for fold in range(int(ranking.fold.max()) + 1):
        tested = ranking.fold == fold
        training = weights * (~tested & ~ranking.same)
        rates = accepted(training, cuts) / training.sum(1)[:, None]
        low = np.maximum((rates <= far).sum(1) - 1, 0)
        high = np.minimum(low + 1, len(thresholds) - 1)
        rows = np.arange(len(weights))
        gap = rates[rows, high] - rates[rows, low]
        part = np.where(gap > 0, (far - rates[rows, low]) / np.where(gap > 0, gap, 1), 0)
        chosen = thresholds[low] + part * FINE_GRID_STEP
        chosen = np.where(rates[:, -1] >= far, chosen, 0.0)
        genuine = weights * (tested & ranking.same)
        hits = genuine * (distance < chosen[:, None])
        results.append(hits.sum(1) / genuine.sum(1))
    return np.mean(results, 0)
