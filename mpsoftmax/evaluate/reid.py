"""Person re-identification: find a person again in another camera. CMC, mAP and mINP."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.blocks import by_query, check_ids
from mpsoftmax.evaluate.outcomes import Outcomes, of_queries

RANKS = (1, 5, 10)
JUNK = -1


@dataclass(frozen=True, eq=False)
class Sightings:
    """Embeddings float [n, D] of people int64 [n] (-1: junk) in front of cameras int64 [n]."""

    embeddings: Tensor
    people: np.ndarray
    cameras: np.ndarray


def reidentify(
    query: Sightings, gallery: Sightings, *, ranks: Sequence[int] = RANKS, comm: Comm | None = None
) -> Outcomes:
    """Re-identification by cosine, single query; collective.

    For each query the gallery images of the same person in front of the same camera are ignored, and junk
    images (person -1) too, as in Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.
    The rest is sorted, of equals the earlier image first. With matches at places p_1 < ... < p_m:
    rank-k is whether p_1 <= k; AP = mean of i / p_i; INP = m / p_m (Ye et al., Deep Learning for Person
    Re-identification: A Survey and Outlook, TPAMI 2021, eq. 6). Queries without a match are left out and
    counted.

    Args:
        query: people of 0 or more.
        gallery: distractors are people nobody asks for.
        ranks: k of the CMC.
        comm: the ranks that share the queries.

    Returns:
        Figures ``rank_K``, ``mAP``, ``mINP``.

    Raises:
        ValueError: shapes that do not fit, junk among the queries, or no query with a match.
    """
    sides = {"query": query, "gallery": gallery}
    for name, side in sides.items():
        for what, ids in (("people", side.people), ("cameras", side.cameras)):
            check_ids(f"{name}.{what}", ids, len(side.embeddings))
    if (query.people == JUNK).any():
        raise ValueError("query.people: -1 is junk; allowed: 0 or more")
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks must be 1 or more, got {list(ranks)}")

    def judge(similarities: np.ndarray, cut: slice) -> tuple[np.ndarray]:
        rows = [
            _judge_one(row, person, camera, gallery)
            for row, person, camera in zip(
                similarities, query.people[cut], query.cameras[cut], strict=True
            )
        ]
        return (np.array(rows, np.float64).reshape(-1, 3),)

    (found,) = by_query(query.embeddings, gallery.embeddings, judge, comm)
    first, precision, inverse = found.T
    lost = np.isnan(first)
    if lost.all():
        raise ValueError("query.people: none of them is in the gallery in front of another camera")
    per_item = {f"rank_{k}": np.where(lost, np.nan, first <= k) for k in ranks}
    per_item |= {"mAP": precision, "mINP": inverse}
    return of_queries(
        "reid",
        per_item,
        lost,
        gallery_images=int((gallery.people != JUNK).sum()),
        people_in_the_gallery=len(np.unique(gallery.people[gallery.people != JUNK])),
    )


def _judge_one(
    similarity: np.ndarray, person: int, camera: int, gallery: Sightings
) -> tuple[float, float, float]:
    """(place of the first match, AP, INP), NaN without a match."""
    same = gallery.people == person
    counted = (gallery.people != JUNK) & ~(same & (gallery.cameras == camera))
    order = np.argsort(-similarity[counted], kind="stable")
    places = np.flatnonzero(same[counted][order]) + 1
    if not len(places):
        return np.nan, np.nan, np.nan
    numbers = np.arange(1, len(places) + 1)
    return float(places[0]), float((numbers / places).mean()), len(places) / int(places[-1])
