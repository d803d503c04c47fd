"""Retrieval: is the nearest gallery item of the query's class?"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
