"""Similarities of rows that depend on nothing but the two rows, and how far float32 products may stray."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAIR_CHUNK = 4096
"""Pairs, or rows, taken to float64 at a time."""
_UNIT = 2.0**-24  # half a unit in the last place of float32


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows as given and their norms float64 [n]; ``scaled`` float32, unit rows under "cosine"."""

    given: Tensor
    norms: Tensor
    scaled: Tensor

    @staticmethod
    def of(rows: Tensor, name: str, metric: str) -> "Rows":
        """Float [n, D]; ``name`` for messages."""
        norms = lengths_of(rows, name, metric)
        return Rows(rows, norms, scaled(rows, norms, metric))


def scaled(rows: Tensor, norms: Tensor, metric: str) -> Tensor:
    """Float [n, D] and norms float64 [n] -> what products are taken of, float32 [n, D]."""
    return rows.float() / norms.float()[:, None] if metric == "cosine" else rows.float()


def slack_of(query_norms: Tensor, norms: Tensor, dim: int, metric: str) -> Tensor:
    """Most by which a float32 product may differ from the exact one, float64 [q].

    |fl(x.y) - x.y| <= gamma_D |x| |y| in any order of summation (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., eq. 3.5), D u + a few u for the scaling of both sides, and what underflows to zero.
    """
    relative = 1.01 * (dim + 8) * _UNIT
    if metric == "cosine":
        return torch.full_like(query_norms, relative + dim * 2.0**-126)
    return relative * query_norms * norms.max() + dim * 2.0**-126


def exact_similarities(
    query: Rows, left: Tensor, rows: Tensor, norms: Tensor, right: Tensor, metric: str
) -> Tensor:
    """Similarities float64 [n] of pairs (query left[i], row right[i])."""
    products = _tree_sum(query.given[left].double() * rows[right].double())
    if metric == "cosine":
        products = products / (query.norms[left] * norms[right])
    return products


def _tree_sum(values: Tensor) -> Tensor:
    """Sum over dim 1 of [n, D], by halves: the order depends on D alone."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        rest = values[:, 2 * half :]
        values = torch.cat([values[:, :half] + values[:, half : 2 * half], rest], 1)
    return values[:, 0]


def lengths_of(rows: Tensor, name: str, metric: str) -> Tensor:
    """Lengths float64 [n].

    Raises:
        ValueError: a value that is not finite, one too large for float32 products, a row of zeros.
    """
    parts = [_root(_tree_sum(part.double().square())) for part in rows.split(PAIR_CHUNK)]
    norms = torch.cat(parts) if parts else rows.new_empty(0, dtype=torch.float64)
    bad = torch.nonzero(~(norms < 1e18))[:, 0]
    if len(bad):
        raise ValueError(
            f"{name}: row {int(bad[0])} holds values that are not finite, or too large"
        )
    if metric == "cosine":
        none = torch.nonzero(norms < 1e-18)[:, 0]
        if len(none):
            raise ValueError(
                f"{name}: row {int(none[0])} is zero: it has no direction, so no cosine"
            )
    return norms


def _root(values: Tensor) -> Tensor:
    """Square roots, rounded as IEEE 754 asks: those of a vector library differ by where a value lies."""
    return (
        torch.from_numpy(np.sqrt(values.numpy())) if values.device.type == "cpu" else values.sqrt()
    )
