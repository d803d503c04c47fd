"""Similarities of queries to a whole gallery, a few queries at a time, the queries shared between ranks."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.data.order import share

CELLS = 1 << 22
"""Similarities held at once; 32 MB each time they are copied."""
DECIMALS = 12
"""To which cosines are compared: what rounding does to equals must not put one before the other."""
_ROWS = 8192

Parts = TypeVar("Parts", bound=tuple[np.ndarray, ...])


def by_query(
    query: Tensor,
    gallery: Tensor,
    judge: Callable[[np.ndarray, slice], Parts],
    comm: Comm | None = None,
) -> Parts:
    """What ``judge`` finds for each query from its cosines to all gallery rows; collective.

    Each rank takes a share of the queries, in blocks of about ``CELLS`` similarities (float64 products).
    What is found for a query depends neither on the blocks nor on the ranks.

    Args:
        query: float [q, D], q > 0, the same on all ranks.
        gallery: float [g, D], g > 0, the same on all ranks.
        judge: from similarities float64 [b, g] of the queries in a slice, and the slice, to arrays [b, ...],
            one row a query.
        comm: the ranks that share the queries; None: this process alone.

    Returns:
        The arrays of all queries [q, ...], on every rank.

    Raises:
        ValueError: shapes that do not fit, nothing to compare, or a row that is zero or not finite.
    """
    comm = comm or Comm()
    _check(query, gallery)
    start, stop = share(len(query), comm.rank, comm.world)
    step = max(1, CELLS // len(gallery))

    def own() -> list[Parts]:
        lows = range(start, stop, step) if start < stop else (start,)
        cuts = [slice(low, min(low + step, stop)) for low in lows]
        return [judge(cosines(query[cut], gallery), cut) for cut in cuts]

    parts = comm.together(own)
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    device = comm.device
    whole = [comm.all_gather_rows(torch.from_numpy(one).to(device)).cpu().numpy() for one in joined]
    return tuple(whole)  # type: ignore[return-value]


def cosines(query: Tensor, gallery: Tensor) -> np.ndarray:
    """Float [b, D], [g, D] -> float64 [b, g], rounded to DECIMALS."""
    rows = unit(query)
    parts = [rows @ unit(piece).T for piece in gallery.split(_ROWS)]
    return np.round(torch.cat(parts, 1).cpu().numpy(), DECIMALS)


def unit(rows: Tensor) -> Tensor:
    """Float [n, D] -> float64 unit rows.

    Raises:
        ValueError: a row that is zero or not finite.
    """
    rows = rows.double()
    norms = rows.norm(dim=1, keepdim=True)
    bad = torch.nonzero(~((norms > 0) & torch.isfinite(norms)))[:, 0]
    if len(bad):
        raise ValueError(f"embeddings: row {int(bad[0])} of a block is zero or not finite")
    return rows / norms


def _check(query: Tensor, gallery: Tensor) -> None:
    for name, rows in (("query", query), ("gallery", gallery)):
        if rows.dim() != 2 or not len(rows) or rows.shape[1] != query.shape[-1]:
            raise ValueError(
                f"{name} must be [n, D] with n > 0 and one D for both, got {list(rows.shape)}"
            )


def check_ids(name: str, ids: np.ndarray, num: int) -> np.ndarray:
    """int64 [num].

    Raises:
        ValueError: another shape or type.
    """
    ids = np.asarray(ids)
    if ids.shape != (num,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be int [{num}], got {ids.dtype} {list(ids.shape)}")
    return ids.astype(np.int64)
