"""Exact search by FAISS: it finds who may be among the nearest, float64 says who is."""

import torch
from torch import Tensor

from mpsoftmax.evaluate.block_search import search_block
from mpsoftmax.evaluate.exact_products import Rows, exact_similarities, scaled, slack_of

_MORE = 32  # neighbours beyond k: whoever might be among the k within the rounding


def search_faiss(
    query: Tensor, gallery: Tensor, norms: Tensor, k: int, metric: str, step: int, block: int
) -> tuple[Tensor, Tensor]:
    """(index, similarity) by IndexFlatIP; queries that its rounding leaves open go through blocks."""
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    for start in range(0, len(gallery), block):
        rows = slice(start, start + block)
        index.add(scaled(gallery[rows], norms[rows], metric).contiguous().cpu().numpy())
    most = min(k + _MORE, len(gallery))
    parts, values = [], []
    for start in range(0, len(query), step):
        rows = Rows.of(query[start : start + step], "query", metric)
        near, found = index.search(rows.scaled.contiguous().cpu().numpy(), most)
        products, ids = torch.from_numpy(near), torch.from_numpy(found).sort(1)[0]
        exact = torch.empty(ids.shape, dtype=torch.float64)
        for column in range(most):
            others = gallery[ids[:, column]]
            every = torch.arange(len(ids))
            exact[:, column] = exact_similarities(
                rows, every, others, norms[ids[:, column]], every, metric
            )
        order = exact.argsort(dim=1, descending=True, stable=True)[:, :k]
        ids, exact = ids.gather(1, order), exact.gather(1, order)
        slack = slack_of(rows.norms, norms, gallery.shape[1], metric)
        # Whoever FAISS left out is at most this similar.
        open_ = exact[:, -1] <= products.amin(1).double() + slack
        if most < len(gallery) and open_.any():
            again = Rows.of(rows.given[open_], "query", metric)
            ids[open_], exact[open_] = search_block(again, gallery, norms, k, metric, block)
        parts.append(ids)
        values.append(exact)
    return torch.cat(parts), torch.cat(values)
