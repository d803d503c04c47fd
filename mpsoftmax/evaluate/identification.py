"""Identification 1:N: who of a gallery is it (closed set), and is it anyone of them at all (open set)?

Open set as NIST has it (Grother, Ngan, Hanaoka: Face Recognition Vendor Test part 2, NISTIR 8271, section 3):
FPIR(T) is the share of searches of people who are not in the gallery that return anyone with a similarity of
at least T; TPIR(R, T) = 1 - FNIR is the share of searches of people in the gallery that return their mate
among the first R with a similarity of at least T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.blocks import by_query, check_ids, unit
from mpsoftmax.evaluate.outcomes import Figures, Outcomes, means
from mpsoftmax.evaluate.ranking import Ranking, accepted, rank_pairs

RANKS = (1, 5, 10)
FPIRS = (0.1, 0.01, 0.001)
MIN_FALSE_POSITIVES = 10
FUSIONS = ("max", "mean")


@dataclass(frozen=True, eq=False)
class Searches:
    """What each of q searches returned.

    Attributes:
        mated: bool [q], whether the person is in the gallery.
        similarity: float64 [q], to the own person where mated, else to the most similar person.
        rank: int64 [q], 1 + people who are as similar as the own one or more; 0 where not mated.
        num_people: in the gallery.
    """

    mated: np.ndarray
    similarity: np.ndarray
    rank: np.ndarray
    num_people: int


def identify(
    gallery: Tensor,
    gallery_people: np.ndarray,
    probe: Tensor,
    probe_people: np.ndarray,
    *,
    fusion: str = "max",
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
    open_rank: int = 1,
    comm: Comm | None = None,
) -> Outcomes:
    """Identification of probes against a gallery by cosine; collective.

    People of the gallery without a probe are distractors; probes whose person is not in the gallery are the
    open set. A person who is exactly as similar as the mate counts as before it: a tie finds nobody.

    Args:
        gallery: float [g, D], one or several images a person.
        gallery_people: int64 [g]; -1: nobody else's image, a person of its own.
        probe: float [q, D].
        probe_people: int64 [q], 0 or more.
        fusion: several gallery images of a person: "max" takes the most similar one, "mean" the mean of
            their unit embeddings.
        ranks: k of the closed set's rank-k rates.
        fpirs: false positive identification rates in (0, 1].
        open_rank: R of TPIR.
        comm: the ranks that share the searches.

    Returns:
        Figures ``rank_K``, over mated searches, and ``tpir_at_fpir_F``, where there are others too.

    Raises:
        ValueError: an argument out of range, or no mated search.
    """
    found = run_searches(gallery, gallery_people, probe, probe_people, fusion=fusion, comm=comm)
    return judge_searches(found, ranks=ranks, fpirs=fpirs, open_rank=open_rank)


def run_searches(
    gallery: Tensor,
    gallery_people: np.ndarray,
    probe: Tensor,
    probe_people: np.ndarray,
    *,
    fusion: str = "max",
    comm: Comm | None = None,
) -> Searches:
    """Every probe against every person of the gallery; arguments as of ``identify``."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    owners = check_ids("gallery_people", gallery_people, len(gallery))
    people = check_ids("probe_people", probe_people, len(probe))
    if len(people) and people.min() < 0:
        raise ValueError("probe_people: -1 is nobody; allowed: 0 or more")
    nobody = owners < 0
    owners = np.where(nobody, -1 - np.arange(len(owners)), owners)
    order = np.argsort(owners, kind="stable")
    names, starts = np.unique(owners[order], return_index=True)
    gallery = gallery[torch.from_numpy(order)]
    if fusion == "mean":
        member = torch.from_numpy(np.searchsorted(names, owners[order]))
        sums = torch.zeros(len(names), gallery.shape[1], dtype=torch.float64)
        gallery = sums.index_add_(0, member, unit(gallery).cpu())
        starts = np.arange(len(names))
    place = np.searchsorted(names, people).clip(max=len(names) - 1)
    mated = names[place] == people

    def judge(similarities: np.ndarray, cut: slice) -> tuple[np.ndarray, np.ndarray]:
        best = np.maximum.reduceat(similarities, starts, axis=1)
        own = np.take_along_axis(best, place[cut, None], 1)
        rank = np.where(mated[cut], (best >= own).sum(1), 0)
        return np.where(mated[cut], own[:, 0], best.max(1)), rank

    similarity, rank = by_query(probe, gallery, judge, comm)
    return Searches(mated, similarity, rank, len(names))


def judge_searches(
    searches: Searches,
    *,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
    open_rank: int = 1,
) -> Outcomes:
    """Rates over searches; arguments and errors as of ``identify``."""
    for name, values in (("ranks", ranks), ("open_rank", (open_rank,))):
        for value in values:
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
    for fpir in fpirs:
        if not 0 < fpir <= 1:
            raise ValueError(f"fpirs must be in (0, 1], got {fpir}")
    mated = searches.mated
    if not mated.any():
        raise ValueError("probe_people: none of them is in the gallery")
    num_others = int((~mated).sum())
    closed = {
        f"rank_{k}": np.where(mated, (searches.rank <= k).astype(float), np.nan) for k in ranks
    }
    per_item = dict(closed)
    if num_others:
        for fpir in fpirs:
            per_item[_name(fpir)] = _found(searches, fpir, open_rank)
    return Outcomes(
        protocol="identification",
        per_item=per_item,
        strata=mated.astype(np.int64),
        figures=_figures(searches, closed, fpirs if num_others else (), open_rank),
        counts={
            "mated_searches": int(mated.sum()),
            "other_searches": num_others,
            "people_in_the_gallery": searches.num_people,
        },
        unsupported=frozenset(
            _name(fpir) for fpir in fpirs if fpir * num_others * (1 + 1e-12) < MIN_FALSE_POSITIVES
        ),
    )


def _name(fpir: float) -> str:
    return f"tpir_at_fpir_{fpir:g}"


def _figures(
    searches: Searches, closed: dict[str, np.ndarray], fpirs: Sequence[float], open_rank: int
) -> Figures:
    closed_rates = means(closed)
    ranking = _ranking(searches)
    hit = (ranking.same & (searches.rank <= open_rank)[ranking.order]).astype(np.int64)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = closed_rates(weights)
        ordered = weights[:, ranking.order]
        hits = accepted(ordered * hit, ranking.cuts)
        num_mated = (ordered * ranking.same).sum(1)
        for fpir in fpirs:
            last = _last_cut(ranking, ordered, fpir)
            found[_name(fpir)] = np.take_along_axis(hits, last, 1)[:, 0] / num_mated
        return found

    return figures


def _ranking(searches: Searches) -> Ranking:
    return rank_pairs(searches.similarity, searches.mated, np.zeros(len(searches.mated), np.int64))


def _last_cut(ranking: Ranking, ordered: np.ndarray, fpir: float) -> np.ndarray:
    """The loosest cut at which at most ``fpir`` of the other searches return anyone: int64 [r, 1]."""
    false = accepted(ordered * ~ranking.same, ranking.cuts)
    allowed = fpir * false[:, -1:] * (1 + 1e-12)  # 0.3 of 10 are 3, whatever the rounding
    return (false <= allowed).sum(1, keepdims=True) - 1


def _found(searches: Searches, fpir: float, open_rank: int) -> np.ndarray:
    """1 where a mated search returned its mate at that rate, else 0; NaN for the others. float64 [q]."""
    ranking = _ranking(searches)
    ones = np.ones((1, len(searches.mated)), np.int64)
    cut = ranking.cuts[_last_cut(ranking, ones, fpir)[0, 0]]
    returned = np.zeros(len(searches.mated), bool)
    returned[ranking.order[:cut]] = True
    hit = returned & (searches.rank <= open_rank)
    return np.where(searches.mated, hit.astype(float), np.nan)
