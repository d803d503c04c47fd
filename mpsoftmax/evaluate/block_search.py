"""The nearest gallery rows of a block of queries, by float32 products and, where it matters, float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mpsoftmax.evaluate.exact_products import (
    PAIR_CHUNK,
    Rows,
    exact_similarities,
    scaled,
    slack_of,
)

HIT_CELLS = 1 << 20
"""Float32 products whose places are looked for at a time."""


def search_block(
    query: Rows, gallery: Tensor, norms: Tensor, k: int, metric: str, block: int
) -> tuple[Tensor, Tensor]:
    """(index, similarity) of one block of queries."""
    num = len(query.given)
    device = query.given.device
    index = torch.empty(num, 0, dtype=torch.int64, device=device)
    best = torch.empty(num, 0, dtype=torch.float64, device=device)
    for start in range(0, len(gallery), block):
        rows, lengths = gallery[start : start + block], norms[start : start + block]
        products = query.scaled @ scaled(rows, lengths, metric).T
        slack = slack_of(query.norms, lengths, rows.shape[1], metric)
        floor = products.new_full((num,), -torch.inf, dtype=torch.float64)
        if best.shape[1] == k:
            floor = best[:, -1] - slack
        elif products.shape[1] >= k:
            # k rows are at least this good but for the rounding, so whoever is worse by two of them is out
            floor = products.topk(k, dim=1, sorted=False).values.amin(1).double() - 2 * slack
        # Rounded down, so that the comparison in float32 keeps all that one in float64 would.
        low = torch.nextafter(floor.float(), torch.tensor(-torch.inf, device=device))
        kept = products >= low[:, None]
        for owner, right in _places(kept):
            exact = exact_similarities(query, owner, rows, lengths, right, metric)
            index, best = _merged(index, best, owner, right + start, exact, k)
    return index, best


def _places(kept: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Row and column of what is True in [q, n], row by row, a bounded number at a time."""
    step = max(1, HIT_CELLS // kept.shape[1])
    for start in range(0, len(kept), step):
        for part in kept[start : start + step].nonzero().split(PAIR_CHUNK):
            if len(part):
                yield part[:, 0] + start, part[:, 1]


def _merged(
    index: Tensor, best: Tensor, owner: Tensor, found: Tensor, exact: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of what each query had, [q, m], and what was found for it; equals in the order they came.

    Columns that a query cannot fill yet hold -inf.
    """
    num, had = index.shape
    owners = torch.cat([torch.arange(num, device=owner.device).repeat_interleave(had), owner])
    ids, values = torch.cat([index.flatten(), found]), torch.cat([best.flatten(), exact])
    order = values.argsort(descending=True, stable=True)
    order = order[owners[order].argsort(stable=True)]
    counts = torch.bincount(owners, minlength=num)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(order), device=order.device) - first[owners[order]]
    width = min(k, int(counts.max()))
    order, place = order[place < width], place[place < width]
    index = index.new_full((num, width), -1)
    best = best.new_full((num, width), -torch.inf)
    index[owners[order], place], best[owners[order], place] = ids[order], values[order]
    return index, best
