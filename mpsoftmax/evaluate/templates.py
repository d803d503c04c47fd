"""Template protocols (IJB-B, IJB-C): a person is a set of pictures and video frames, compared as one.

Features as insightface's evaluation of IJB makes them: the embedding of a face with its mirror image's added,
its length kept or not, times the detector's score or not; the mean within a media (a picture, or the frames
of one video); the sum over the media of a template; unit length.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.blocks import check_ids
from mpsoftmax.evaluate.identification import FPIRS, RANKS, judge_searches, run_searches
from mpsoftmax.evaluate.outcomes import Figures, Outcomes
from mpsoftmax.evaluate.ranking import Ranking, auc, rank_pairs, roc, tar_at_far
from mpsoftmax.evaluate.verification import MIN_FALSE_ACCEPTS

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_ROWS = 65536


def template_features(
    embeddings: Tensor,
    templates: np.ndarray,
    media: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    by_norm: bool = True,
) -> tuple[np.ndarray, Tensor]:
    """Unit features of all templates.

    Args:
        embeddings: float [n, D], raw (not of unit length).
        templates: int64 [n], the template of each face.
        media: int64 [n], its media, counted within a template.
        scores: float [n], detector scores to weight by; None: all faces weigh the same.
        by_norm: keep the embeddings' lengths as weights; else they are made unit first.

    Returns:
        (template ids int64 [t], ascending; features float64 [t, D]).

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a template whose feature is zero.
    """
    templates = check_ids("templates", templates, len(embeddings))
    media = check_ids("media", media, len(embeddings))
    ids, place = np.unique(templates, return_inverse=True)
    _, group, sizes = np.unique(
        np.stack([place, media], 1), axis=0, return_inverse=True, return_counts=True
    )
    weight = 1.0 / sizes[group.ravel()]
    if scores is not None:
        if np.shape(scores) != (len(embeddings),):
            raise ValueError(f"scores must be [{len(embeddings)}], got {list(np.shape(scores))}")
        weight = weight * scores
    sums = torch.zeros(len(ids), embeddings.shape[1], dtype=torch.float64)
    for start in range(0, len(embeddings), _ROWS):
        cut = slice(start, start + _ROWS)
        rows = embeddings[cut].double().cpu()
        if not by_norm:
            rows = rows / rows.norm(dim=1, keepdim=True)
        rows = rows * torch.from_numpy(weight[cut])[:, None]
        sums.index_add_(0, torch.from_numpy(place[cut].astype(np.int64)), rows)
    norms = sums.norm(dim=1, keepdim=True)
    bad = torch.nonzero(~((norms[:, 0] > 0) & torch.isfinite(norms[:, 0])))[:, 0]
    if len(bad):
        raise ValueError(f"template {ids[int(bad[0])]}: its feature is zero or not finite")
    return ids, sums / norms


def pair_similarities(ids: np.ndarray, features: Tensor, pairs: np.ndarray) -> np.ndarray:
    """Cosines of pairs of templates: ids int64 [t] ascending, features [t, D], pairs int64 [P, 2] -> [P]."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), _ROWS):
        cut = slice(start, start + _ROWS)
        first, second = (
            features[torch.from_numpy(np.searchsorted(ids, pairs[cut, side]))] for side in (0, 1)
        )
        found[cut] = (first * second).sum(1).numpy()
    return found


def judge_pairs(
    similarity: np.ndarray, same: np.ndarray, *, fars: Sequence[float] = FARS
) -> Outcomes:
    """1:1: the largest TAR of a threshold whose FAR is at most that asked for, and the AUC.

    Args:
        similarity: float [P].
        same: bool [P], both kinds.
        fars: false accept rates in (0, 1].

    Raises:
        ValueError: one kind of pairs only, or a rate out of range.
    """
    if same.all() or not same.any():
        raise ValueError("same must hold both kinds of pairs")
    for far in fars:
        if not 0 < far <= 1:
            raise ValueError(f"fars must be in (0, 1], got {far}")
    ranking = rank_pairs(similarity, same, np.zeros(len(same), np.int64))
    num_impostors = int((~same).sum())
    few = [f for f in fars if f * num_impostors * (1 + 1e-12) < MIN_FALSE_ACCEPTS]
    return Outcomes(
        protocol="template 1:1",
        per_item={_name(far): _accepted(ranking, far) for far in fars},
        strata=same.astype(np.int64),
        figures=_pair_figures(ranking, fars),
        counts={"genuine_pairs": int(same.sum()), "impostor_pairs": num_impostors},
        unsupported=frozenset(_name(far) for far in few),
    )


def _name(far: float) -> str:
    return f"tar_at_far_{far:g}"


def _pair_figures(ranking: Ranking, fars: Sequence[float]) -> Figures:
    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        curve = roc(ranking, weights[:, ranking.order])
        rates = {_name(far): tar_at_far(curve, far) for far in fars}
        return {**rates, "auc": auc(curve)}

    return figures


def _accepted(ranking: Ranking, far: float) -> np.ndarray:
    """1 where a genuine pair is accepted at that rate, else 0; NaN for impostors. float64 [P]."""
    false = np.append(0, np.cumsum(~ranking.same))[ranking.cuts]
    cut = ranking.cuts[(false <= far * false[-1] * (1 + 1e-12)).sum() - 1]
    found = np.where(ranking.same, np.arange(len(ranking.same)) < cut, np.nan)
    result = np.empty(len(found))
    result[ranking.order] = found
    return result


def judge_galleries(
    galleries: Sequence[tuple[Tensor, np.ndarray]],
    probe: Tensor,
    probe_subjects: np.ndarray,
    *,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
    comm: Comm | None = None,
) -> Outcomes:
    """1:N: every probe against each gallery, and the mean of the galleries' rates; collective.

    Probes whose subject is not in a gallery are its open set (`identification.py`). Items are searches, so
    that each probe is one in every gallery.

    Args:
        galleries: features float [g, D] and subjects int64 [g] of each.
        probe: features float [q, D].
        probe_subjects: int64 [q].
        ranks: of the closed set.
        fpirs: of the open set.
        comm: the ranks that share the searches.

    Returns:
        Figures ``rank_K``, ``tpir_at_fpir_F`` (means), and those of the galleries as ``gallery_N_...``.

    Raises:
        ValueError: as of ``identify``.
    """
    parts = [
        judge_searches(
            run_searches(features, subjects, probe, probe_subjects, comm=comm),
            ranks=ranks,
            fpirs=fpirs,
        )
        for features, subjects in galleries
    ]
    names = [name for name in parts[0].per_item if all(name in one.per_item for one in parts)]
    num = len(probe_subjects)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        each = [one.figures(weights[:, k * num : (k + 1) * num]) for k, one in enumerate(parts)]
        found = {name: np.mean([one[name] for one in each], 0) for name in names}
        for number, one in enumerate(each, start=1):
            found |= {f"gallery_{number}_{name}": one[name] for name in names}
        return found

    counts = {
        f"gallery_{number}_{what}": value
        for number, one in enumerate(parts, start=1)
        for what, value in one.counts.items()
    }
    few = frozenset[str]().union(*(one.unsupported for one in parts))
    return Outcomes(
        protocol="template 1:N",
        per_item={name: np.concatenate([one.per_item[name] for one in parts]) for name in names},
        strata=np.concatenate([2 * k + one.strata for k, one in enumerate(parts)]),
        figures=figures,
        counts=counts,
        unsupported=few
        | {
            f"gallery_{number}_{name}"
            for number, one in enumerate(parts, start=1)
            for name in one.unsupported
        },
    )
