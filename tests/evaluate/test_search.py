"""Exact search: against a sort of all similarities, ties, blocks, ranks, FAISS, memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.search import search, search_bytes

BLOCKS = [(1, 7), (5, 64), (1024, 8192)]


def points(num, dim=24, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def with_ties():
    """Rows that repeat, near repeats that float32 products cannot tell apart, and others."""
    gallery = points(300, seed=1)
    gallery[100:140] = gallery[7]
    gallery[200:220] = gallery[7] * 4  # the same direction
    gallery[250] = torch.nextafter(gallery[7], torch.tensor(torch.inf))
    return torch.cat([points(9, seed=2), gallery[7:8], gallery[30:32] * 0.5]), gallery


def by_sorting(query, gallery, k, metric):
    """The definition, in NumPy: all similarities in float64, a stable sort."""
    q, g = (side.double().numpy() for side in (query, gallery))
    similarity = np.array([[math_sum(a * b) for b in g] for a in q])
    if metric == "cosine":
        lengths = [np.sqrt([math_sum(row * row) for row in side]) for side in (q, g)]
        similarity /= lengths[0][:, None] * lengths[1]
    order = np.argsort(-similarity, 1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, 1)


def math_sum(products):
    """By halves; the last of an odd number waits."""
    values = list(products)
    while len(values) > 1:
        half = len(values) // 2
        pairs = [a + b for a, b in zip(values[:half], values[half : 2 * half], strict=True)]
        values = pairs + values[2 * half :]
    return values[0]


@pytest.mark.parametrize("metric", ["cosine", "inner"])
@pytest.mark.parametrize("dim", [1, 5, 24])
def test_equals_a_sort_of_all_similarities_whatever_the_blocks(metric, dim):
    query, gallery = (side[:, :dim].contiguous() for side in with_ties())
    for k in (1, 10, 60, 300):
        index, similarity = by_sorting(query, gallery, k, metric)
        for query_block, gallery_block in BLOCKS:
            found = search(
                query,
                gallery,
                k,
                metric=metric,
                query_block=query_block,
                gallery_block=gallery_block,
            )
            assert np.array_equal(found.index.numpy(), index)
            assert np.array_equal(found.similarity.numpy(), similarity)


def test_the_lower_index_first():
    gallery = torch.ones(50, 3)
    found = search(torch.ones(2, 3), gallery, 4, gallery_block=8)
    assert found.index.tolist() == [[0, 1, 2, 3]] * 2
    assert found.similarity.numpy() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("metric", ["cosine", "inner"])
@pytest.mark.parametrize("k", [1, 20, 300])
def test_faiss_gives_the_same(metric, k):
    pytest.importorskip("faiss")
    query, gallery = with_ties()
    ours = search(query, gallery, k, metric=metric, gallery_block=64)
    theirs = search(query, gallery, k, metric=metric, backend="faiss", gallery_block=64)
    assert torch.equal(ours.index, theirs.index)
    assert torch.equal(ours.similarity, theirs.similarity)


def sharded(k, empty):
    query, gallery = with_ties()
    comm = Comm()
    cuts = [0, *[17 + 100 * rank for rank in range(comm.world - 1)], len(gallery)]
    if empty and comm.world > 1:
        cuts[1] = 0
    part = gallery[cuts[comm.rank] : cuts[comm.rank + 1]]
    found = search(query, part, k, comm=comm, gallery_block=50)
    return found.index, found.similarity


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_gallery_over_ranks(ranks, world):
    query, gallery = with_ties()
    for k, empty in ((5, False), (150, True)):
        whole = search(query, gallery, k)
        for index, similarity in ranks.run(sharded, world, k=k, empty=empty):
            assert torch.equal(index, whole.index)
            assert torch.equal(similarity, whole.similarity)


def failing():
    gallery = points(20)
    comm = Comm()
    if comm.rank == 1:
        gallery[3] = torch.nan
    with pytest.raises(ValueError, match="rank 1: gallery: row 3 holds values"):
        search(points(2), gallery, 3, comm=comm)
    return True


def test_every_rank_says_what_one_of_them_has(ranks):
    assert ranks.run(failing, 2) == [True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be 1 .. 20"),
        ({"k": 21}, "k must be 1 .. 20"),
        ({"metric": "l2"}, "metric must be one of cosine, inner"),
        ({"backend": "gpu"}, "backend must be one of torch, faiss"),
        ({"gallery_block": 0}, "gallery_block must be at least 1"),
        ({"query": points(0)}, "query: there are none"),
        ({"query": points(2, 5)}, "gallery must be float"),
        ({"query": torch.zeros(1, 24)}, "query: row 0 is zero"),
    ],
)
def test_errors(options, message):
    arguments = {"query": points(3), "gallery": points(20), "k": 2, **options}
    query, gallery, k = (arguments.pop(name) for name in ("query", "gallery", "k"))
    with pytest.raises(ValueError, match=message):
        search(query, gallery, k, **arguments)


def test_products_of_fewer_bits_are_refused():
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="float32 matmul precision is 'medium'"):
            search(points(3), points(20), 2)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_memory_stays_below_the_formula():
    """In a process of its own: what it adds at its peak; a gallery of one row repeated is the worst case."""
    script = Path(__file__).with_name("peak_of_search.py")
    sizes = {"random": 30000, "one row": 2000}
    cases = [
        {"queries": 300, "gallery": num, "dim": 64, "k": 10, "block": 4096, "kind": kind}
        for kind, num in sizes.items()
    ]
    out = subprocess.run(
        [sys.executable, str(script), json.dumps(cases)], check=True, capture_output=True, text=True
    )
    for num, peak in zip(sizes.values(), out.stdout.split(), strict=True):
        assert 1_000_000 < int(peak) < search_bytes(300, num, 64, 10, gallery_block=4096)
