"""Retrieval: are the nearest gallery items of the query's class? Recall@k, R-precision, mAP@R."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.data.order import share
from mpsoftmax.evaluate.blocks import check_ids
from mpsoftmax.evaluate.outcomes import Outcomes, of_queries
from mpsoftmax.evaluate.search import search

RECALLS = (1, 5, 10, 100)


def retrieve(
    gallery: Tensor,
    gallery_labels: np.ndarray,
    query: Tensor,
    query_labels: np.ndarray,
    *,
    own: np.ndarray | None = None,
    recalls: Sequence[int] = RECALLS,
    backend: str = "torch",
    comm: Comm | None = None,
) -> Outcomes:
    """Retrieval by cosine, exact search, of equals the lower gallery row first; collective.

    With R gallery items of the query's class, itself left out: Recall@k is whether one of the k nearest is of
    the class; R-precision the share of the R nearest that are; AP@R = sum over i <= R of precision at i where
    item i is of the class, over R (Musgrave, Belongie, Lim: A Metric Learning Reality Check, ECCV 2020,
    section 3.2). Queries with R = 0 are left out and counted.

    Args:
        gallery: float [g, D], the same on all ranks.
        gallery_labels: int64 [g]; -1: a distractor, of nobody's class.
        query: float [q, D].
        query_labels: int64 [q], 0 or more.
        own: int64 [q], the gallery row that is the query itself, -1: none; None: none has one. For retrieval
            within one set: gallery = query, own = 0 .. q - 1.
        recalls: values of k.
        backend: of ``search``.
        comm: the ranks that share the search.

    Returns:
        Figures ``recall_at_K``, ``r_precision``, ``mAP_at_R``.

    Raises:
        ValueError: shapes that do not fit, an option out of range, or no query with R > 0.
    """
    labels = check_ids("gallery_labels", gallery_labels, len(gallery))
    wanted = check_ids("query_labels", query_labels, len(query))
    itself = np.full(len(query), -1) if own is None else check_ids("own", own, len(query))
    if len(wanted) and wanted.min() < 0:
        raise ValueError("query_labels: -1 is nobody's class; allowed: 0 or more")
    if (wanted[itself >= 0] != labels[itself[itself >= 0]]).any():
        raise ValueError("own: a query and its own gallery row must have one label")
    if not recalls or min(recalls) < 1:
        raise ValueError(f"recalls must be 1 or more, got {list(recalls)}")
    num_relevant = _count_of(labels, wanted) - (itself >= 0)
    if not (num_relevant > 0).any():
        raise ValueError("query_labels: no query has an item of its class in the gallery")
    most = min(len(gallery), max(*recalls, int(num_relevant.max())) + int((itself >= 0).any()))
    found = _nearest_items(query, gallery, most, backend, comm)
    matches = labels[found] == wanted[:, None]
    if (itself >= 0).any():
        # The query's own row moves behind the others; where it is not there, the last one is one too many.
        behind = np.argsort(found == itself[:, None], axis=1, kind="stable")
        matches = np.take_along_axis(matches, behind, 1)[:, : most - 1]
    per_item = _figures_of(matches, num_relevant, recalls)
    lost = num_relevant <= 0
    return of_queries(
        "retrieval",
        per_item,
        lost,
        gallery_items=len(labels),
        distractors=int((~np.isin(labels, wanted)).sum()),
    )


def _count_of(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How many gallery items have each wanted label, int64 [q]."""
    ordered = np.sort(labels)
    return np.searchsorted(ordered, wanted, "right") - np.searchsorted(ordered, wanted, "left")


def _nearest_items(
    query: Tensor, gallery: Tensor, most: int, backend: str, comm: Comm | None
) -> np.ndarray:
    """int64 [q, most], gallery rows, nearest first."""
    comm = comm or Comm()
    start, stop = share(len(gallery), comm.rank, comm.world)
    part = gallery[start:stop]
    return search(query, part, most, backend=backend, comm=comm).index.cpu().numpy()


def _figures_of(
    matches: np.ndarray, num_relevant: np.ndarray, recalls: Sequence[int]
) -> dict[str, np.ndarray]:
    """What each query adds, from whether its nearest items are of its class: bool [q, m], int64 [q]."""
    lost = num_relevant <= 0
    relevant = np.maximum(num_relevant, 1)
    inside = matches & (np.arange(matches.shape[1]) < relevant[:, None])
    precision = np.cumsum(inside, 1) / np.arange(1, matches.shape[1] + 1)
    found: dict[str, np.ndarray] = {}
    for k in recalls:
        found[f"recall_at_{k}"] = matches[:, :k].any(1).astype(float)
    found["r_precision"] = inside.sum(1) / relevant
    found["mAP_at_R"] = (precision * inside).sum(1) / relevant
    return {name: np.where(lost, np.nan, values) for name, values in found.items()}


def recall_at_1(
    gallery: Tensor,
    gallery_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    *,
    block: int = 4096,
) -> float:
    """Share of queries whose nearest gallery item (by cosine, exact search) has their label.

    Of equally near items the first counts. The cosines are never held all at once: queries and
    gallery are taken in blocks.

    Args:
        gallery: float [g, D], g > 0; need not be normalised.
        gallery_labels: int64 [g].
        query: float [q, D], q > 0, on the gallery's device.
        query_labels: int64 [q].
        block: rows of either side at a time; block^2 cosines are held.

    Raises:
        ValueError: shapes that do not fit, nothing to search, values that are not finite, or a
            query whose label no gallery item has (leave such queries out, and say so).
    """
    _check(gallery, gallery_labels, query, query_labels, block)
    gallery = F.normalize(gallery.float())
    num_hits = 0
    for start in range(0, len(query), block):
        rows = F.normalize(query[start : start + block].float())
        nearest = _nearest(rows, gallery, block)
        num_hits += int((gallery_labels[nearest] == query_labels[start : start + block]).sum())
    return num_hits / len(query)


def _nearest(rows: Tensor, gallery: Tensor, block: int) -> Tensor:
    """Index of the nearest gallery row: unit rows [n, D], [g, D] -> int64 [n]."""
    best = torch.full((len(rows),), -torch.inf, device=rows.device)
    index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(gallery), block):
        value, place = (rows @ gallery[start : start + block].T).max(1)
        index = torch.where(value > best, place + start, index)
        best = torch.maximum(best, value)
    return index


def _check(
    gallery: Tensor, gallery_labels: Tensor, query: Tensor, query_labels: Tensor, block: int
) -> None:
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    for name, items, labels in (
        ("gallery", gallery, gallery_labels),
        ("query", query, query_labels),
    ):
        if items.dim() != 2 or len(items) == 0 or items.shape[1] != gallery.shape[-1]:
            raise ValueError(
                f"{name} must be [n, D] with n > 0 and one D for both, got {list(items.shape)}"
            )
        if labels.shape != (len(items),):
            raise ValueError(f"{name}_labels must be [{len(items)}], got {list(labels.shape)}")
        if not torch.isfinite(items).all():
            raise ValueError(f"{name} holds values that are not finite")
    lost = query_labels[~torch.isin(query_labels, gallery_labels)]
    if len(lost):
        raise ValueError(
            f"query_labels: {len(lost)} queries have no item of their class in the gallery "
            f"(first: label {int(lost[0])})"
        )
