"""Exact search: of each query the k most similar rows of a gallery of millions, in bounded memory.

Float32 products find who can be among the nearest; those few are compared anew in float64, in an order of
summation that depends on nothing but the dimension. The float32 products may be wrong by at most a bound that
is known, and nobody within it is left out. So the answer is that of float64, whatever the blocks, the number
of ranks and the backend; of equally similar rows the lower index comes first.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.block_search import HIT_CELLS, search_block
from mpsoftmax.evaluate.exact_products import PAIR_CHUNK, Rows, lengths_of

METRICS = ("cosine", "inner")
BACKENDS = ("torch", "faiss")
QUERY_BLOCK = 1024
GALLERY_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest gallery rows of each query, nearest first.

    Attributes:
        index: int64 [q, k], rows of the gallery.
        similarity: float64 [q, k].
    """

    index: Tensor
    similarity: Tensor


def search(
    query: Tensor,
    gallery: Tensor,
    k: int,
    *,
    metric: str = "cosine",
    backend: str = "torch",
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
    comm: Comm | None = None,
) -> Neighbours:
    """The k most similar gallery rows of each query, exactly; collective where ``comm`` is given.

    Args:
        query: float [q, D], q > 0, the same on all ranks.
        gallery: float [g, D] on the query's device; with ``comm`` this rank's part of the gallery, perhaps
            empty, the whole being the parts in the order of ranks.
        k: 1 .. rows of the whole gallery.
        metric: "cosine", or "inner" for inner products.
        backend: "torch", or "faiss" for its IndexFlatIP (on the CPU; copies the gallery).
        query_block: queries at a time.
        gallery_block: gallery rows at a time.
        comm: the ranks that hold the gallery; None: this process alone.

    Returns:
        The neighbours, on every rank; ``search_bytes`` bounds the memory beyond the arguments.

    Raises:
        ValueError: an argument out of range, values that are not finite, a row of zeros under "cosine", or
            faiss asked for and not installed.
    """
    if comm is None or comm.world == 1:
        _check(query, gallery, k, metric, backend, query_block, gallery_block, len(gallery))
        return _search(query, gallery, k, metric, backend, query_block, gallery_block)
    sizes: list[int] = comm.share(len(gallery))
    start, num_all = sum(sizes[: comm.rank]), sum(sizes)

    def local() -> Neighbours:
        _check(query, gallery, k, metric, backend, query_block, gallery_block, num_all)
        most = min(k, len(gallery))
        found = _search(query, gallery, most, metric, backend, query_block, gallery_block)
        missing = (len(query), k - most)
        index = torch.cat([found.index + start, found.index.new_full(missing, -1)], 1)
        worst = found.similarity.new_full(missing, -torch.inf)
        return Neighbours(index, torch.cat([found.similarity, worst], 1))

    own = comm.together(local)
    index = comm.all_gather(own.index).transpose(0, 1).flatten(1)
    similarity = comm.all_gather(own.similarity).transpose(0, 1).flatten(1)
    # Ranks lie in the order of the gallery, so a stable sort leaves the lower index first.
    best = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
    return Neighbours(index.gather(1, best), similarity.gather(1, best))


def search_bytes(
    num_queries: int,
    num_gallery: int,
    dim: int,
    k: int,
    *,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> int:
    """Most bytes that ``search`` with backend "torch" holds beyond its arguments and the libraries.

    In order: the answer; a norm a gallery row; a block of queries and one of gallery rows in float32, scaled
    (16 bytes an element with what is between); a block of float32 products, its mask, and room for finding
    the k-th (8 bytes a cell); places of products (24 a cell looked at); pairs in float64; the best so far.
    """
    query_block, gallery_block = min(query_block, num_queries), min(gallery_block, num_gallery)
    return (
        16 * num_queries * k
        + 8 * num_gallery
        + 16 * (query_block + gallery_block) * dim
        + 13 * query_block * gallery_block
        + 24 * max(HIT_CELLS, gallery_block)
        + 40 * PAIR_CHUNK * dim
        + 100 * (query_block * k + PAIR_CHUNK)
    )


def _search(
    query: Tensor, gallery: Tensor, k: int, metric: str, backend: str, step: int, block: int
) -> Neighbours:
    index = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    similarity = torch.empty(len(query), k, dtype=torch.float64, device=query.device)
    if not k:
        return Neighbours(index, similarity)
    norms = lengths_of(gallery, "gallery", metric)
    if backend == "faiss":
        from mpsoftmax.evaluate.faiss_search import search_faiss

        found = search_faiss(query, gallery, norms, k, metric, step, block)
        return Neighbours(*found)
    for start in range(0, len(query), step):
        rows = query[start : start + step]
        found = search_block(Rows.of(rows, "query", metric), gallery, norms, k, metric, block)
        index[start : start + step], similarity[start : start + step] = found
    return Neighbours(index, similarity)


def _check(
    query: Tensor,
    gallery: Tensor,
    k: int,
    metric: str,
    backend: str,
    query_block: int,
    gallery_block: int,
    num_gallery: int,
) -> None:
    for name, rows in (("query", query), ("gallery", gallery)):
        if rows.dim() != 2 or rows.shape[1] != query.shape[-1] or not rows.is_floating_point():
            raise ValueError(
                f"{name} must be float [n, D], one D for both, got {rows.dtype} {list(rows.shape)}"
            )
    if not len(query):
        raise ValueError("query: there are none to search for")
    if not 1 <= k <= num_gallery:
        raise ValueError(f"k must be 1 .. {num_gallery} (the gallery's rows), got {k}")
    for name, block in (("query_block", query_block), ("gallery_block", gallery_block)):
        if block < 1:
            raise ValueError(f"{name} must be at least 1, got {block}")
    _check_means(query, metric, backend)


def _check_means(query: Tensor, metric: str, backend: str) -> None:
    for name, value, allowed in (("metric", metric, METRICS), ("backend", backend, BACKENDS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    if torch.get_float32_matmul_precision() != "highest":
        raise ValueError(
            f"float32 matmul precision is {torch.get_float32_matmul_precision()!r}; allowed: 'highest'"
            " (torch.set_float32_matmul_precision): others take fewer bits, and miss neighbours"
        )
    if backend == "faiss" and find_spec("faiss") is None:
        raise ValueError("backend: 'faiss' is not installed (pip install faiss-cpu)")
    if backend == "faiss" and query.device.type != "cpu":
        raise ValueError(f"backend: 'faiss' searches on the CPU, the query is on {query.device}")
