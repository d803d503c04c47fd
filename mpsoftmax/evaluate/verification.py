"""Verification: are two images of the same class? Figures from similarities of pairs, in NumPy."""

from collections.abc import Callable, Sequence

import numpy as np

from mpsoftmax.evaluate.bootstrap import intervals
from mpsoftmax.evaluate.folds import (
    ExactRule,
    GridRule,
    best_threshold,
    fold_accuracies,
    fold_correct,
    fold_numbers,
    fold_tar_at_far,
)
from mpsoftmax.evaluate.outcomes import Outcomes
from mpsoftmax.evaluate.ranking import (
    Ranking,
    auc,
    equal_error_rate,
    rank_pairs,
    roc,
    tar_at_far,
)
from mpsoftmax.evaluate.result import TarAtFar, VerificationResult

PROTOCOLS = ("exact", "insightface")
MIN_FALSE_ACCEPTS = 10

__all__ = ["VerificationResult", "verification_outcomes", "verify"]


def verify(
    similarity: np.ndarray,
    same: np.ndarray,
    *,
    num_folds: int = 10,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
    num_bootstrap: int = 1000,
    seed: int = 0,
    protocol: str = "exact",
) -> VerificationResult:
    """Judge similarities of pairs.

    Folds are consecutive blocks of the pairs as given: the order of the pairs matters, and pair
    lists that are built in folds (LFW's) must not be shuffled. The threshold that is best on all
    folds but one is applied to that one. A pair is accepted if its similarity is >= the threshold.

    The bootstrap draws pairs with replacement within each fold and kind (genuine, impostor), as
    many as there are, so that a replicate keeps the layout; its intervals know nothing of pairs
    that share an image or a class, and are too narrow by that.

    Args:
        similarity: float [P], higher = more alike; cosines for protocol "insightface".
        same: bool [P], whether the pair is of one class.
        num_folds: 2 or more.
        fars: false accept rates in (0, 1].
        num_bootstrap: replicates; 0 = no intervals. Time grows with replicates x folds x pairs
            (about 1 s for 1000 x 10 x 2400).
        seed: of the bootstrap; the same seed gives the same intervals.
        protocol: "exact" considers every threshold that tells pairs apart (ties: see
            ``folds.ExactRule``); "insightface" is arcface_torch's: squared distances, thresholds
            0 to 4 in steps of 0.01, TAR at FAR by folds on steps of 0.001. AUC and EER are exact
            under both.

    Raises:
        ValueError: shapes or types not as said, a value that is not finite, only one kind of
            pair, fewer pairs than folds, or an option out of range.
    """
    similarity, same = _checked_pairs(similarity, same, num_folds)
    _check_options(similarity, fars, num_bootstrap, protocol)
    ranking = rank_pairs(similarity, same, fold_numbers(len(same), num_folds))
    if protocol == "insightface":
        _check_folds(ranking, num_folds)
    figures = _figures(ranking, protocol, fars)
    ones = np.ones((1, len(same)), np.int64)
    point = {name: values[0] for name, values in figures(ones).items()}
    spread = intervals(2 * ranking.fold + ranking.same, figures, num_bootstrap, seed)
    rule = _rule(ranking, protocol)
    per_fold = fold_accuracies(ranking, ones, rule)[0]
    num_impostors = int((~same).sum())
    tars = tuple(
        TarAtFar(
            far=float(far),
            tar=float(point[f"tar {far}"]),
            interval=spread.get(f"tar {far}"),
            num_impostors=num_impostors,
            supported=bool(far * num_impostors * (1 + 1e-12) >= MIN_FALSE_ACCEPTS),
        )
        for far in fars
    )
    return VerificationResult(
        accuracy=float(point["accuracy"]),
        accuracy_std=float(per_fold.std()),
        accuracy_interval=spread.get("accuracy"),
        fold_accuracies=tuple(per_fold.tolist()),
        auc=float(point["auc"]),
        auc_interval=spread.get("auc"),
        eer=float(equal_error_rate(roc(ranking, ones))[0]),
        threshold=float(best_threshold(ranking, ones, rule)[0][0]),
        tar_at_far=tars,
        num_genuine=len(same) - num_impostors,
        num_impostors=num_impostors,
        protocol=protocol,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )


def verification_outcomes(
    similarity: np.ndarray,
    same: np.ndarray,
    *,
    num_folds: int = 10,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
    protocol: str = "exact",
) -> Outcomes:
    """What each pair adds to the figures of ``verify``, for comparisons; arguments and errors as there.

    A pair is right or wrong at the threshold chosen on the other folds; figures without such a value a pair
    (AUC; TAR at FAR) have none.
    """
    similarity, same = _checked_pairs(similarity, same, num_folds)
    _check_options(similarity, fars, 0, protocol)
    ranking = rank_pairs(similarity, same, fold_numbers(len(same), num_folds))
    if protocol == "insightface":
        _check_folds(ranking, num_folds)
    ones = np.ones((1, len(same)), np.int64)
    correct = np.empty(len(same))
    correct[ranking.order] = fold_correct(ranking, ones, _rule(ranking, protocol))[0]
    in_order = _figures(ranking, protocol, fars)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = in_order(weights[:, ranking.order])
        names = {f"tar {far}": f"tar_at_far_{far:g}" for far in fars}
        return {names.get(name, name): values for name, values in found.items()}

    num_impostors = int((~same).sum())
    few = [far for far in fars if far * num_impostors * (1 + 1e-12) < MIN_FALSE_ACCEPTS]
    return Outcomes(
        protocol="verification",
        per_item={"accuracy": correct},
        strata=2 * fold_numbers(len(same), num_folds) + same,
        figures=figures,
        counts={"genuine_pairs": int(same.sum()), "impostor_pairs": num_impostors},
        unsupported=frozenset(f"tar_at_far_{far:g}" for far in few),
    )


def _rule(ranking: Ranking, protocol: str) -> ExactRule | GridRule:
    return GridRule(ranking) if protocol == "insightface" else ExactRule(ranking)


def _figures(
    ranking: Ranking, protocol: str, fars: Sequence[float]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The function from weights int64 [r, p] to the figures that get intervals, each [r]."""
    rule = _rule(ranking, protocol)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        curve = roc(ranking, weights)
        found = {
            "accuracy": fold_accuracies(ranking, weights, rule).mean(1),
            "auc": auc(curve),
        }
        for far in fars:
            by_folds = protocol == "insightface"
            found[f"tar {far}"] = (
                fold_tar_at_far(ranking, weights, far) if by_folds else tar_at_far(curve, far)
            )
        return found

    return figures


def _checked_pairs(
    similarity: np.ndarray, same: np.ndarray, num_folds: int
) -> tuple[np.ndarray, np.ndarray]:
    similarity, same = np.asarray(similarity), np.asarray(same)
    if similarity.ndim != 1 or not np.issubdtype(similarity.dtype, np.floating):
        raise ValueError(
            f"similarity must be float [P], got {similarity.dtype} {list(similarity.shape)}"
        )
    if same.shape != similarity.shape or same.dtype != np.bool_:
        raise ValueError(
            f"same must be bool [{len(similarity)}], got {same.dtype} {list(same.shape)}"
        )
    bad = np.flatnonzero(~np.isfinite(similarity))
    if len(bad):
        raise ValueError(f"similarity[{bad[0]}] is {similarity[bad[0]]}; all must be finite")
    if not 2 <= num_folds <= len(same):
        raise ValueError(f"num_folds must be 2 .. {len(same)} (the pairs), got {num_folds}")
    if same.all() or not same.any():
        kind = "genuine" if same.all() else "impostor"
        raise ValueError(f"same must hold both kinds of pairs, got {len(same)} {kind} ones only")
    return similarity.astype(np.float64), same


def _check_options(
    similarity: np.ndarray, fars: Sequence[float], num_bootstrap: int, protocol: str
) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if protocol == "insightface" and np.abs(similarity).max() > 1 + 1e-4:
        worst = similarity[np.abs(similarity).argmax()]
        raise ValueError(f"similarity must be cosines for protocol 'insightface', got {worst}")
    for far in fars:
        if not 0 < far <= 1:
            raise ValueError(f"fars must be in (0, 1], got {far}")
    if num_bootstrap < 0:
        raise ValueError(f"num_bootstrap must be 0 or more, got {num_bootstrap}")


def _check_folds(ranking: Ranking, num_folds: int) -> None:
    """TAR is taken within a fold, FAR on the others: both need their kind of pairs."""
    for fold in range(num_folds):
        inside = ranking.fold == fold
        if not (ranking.same & inside).any() or (ranking.same | inside).all():
            raise ValueError(
                f"same: protocol 'insightface' needs genuine pairs in fold {fold} and impostor "
                "pairs in the others"
            )
