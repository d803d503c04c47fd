import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mpsoftmax as mp
from mpsoftmax.head import class_table
from mpsoftmax.head.class_table import initial_rows, local_range


@given(num_classes=st.integers(1, 300), world=st.integers(1, 40))
def test_local_range_is_torch_chunk(num_classes, world):
    chunks = torch.arange(num_classes).chunk(world)
    for rank in range(world):
        start, stop = local_range(num_classes, world, rank)
        expected = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(range(start, stop)) == expected


def test_local_range_of_many_classes():
    """Ranges are adjacent and cover all classes, whatever their number."""
    for num_classes in (10**8, 10**8 + 1, 93431, 7):
        for world in (1, 3, 8, 512):
            ranges = [local_range(num_classes, world, rank) for rank in range(world)]
            assert ranges[0][0] == 0
            assert ranges[-1][1] == num_classes
            assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 129])
def test_initial_rows_depend_on_the_class_only(dim):
    whole = initial_rows(0, 100, dim, seed=4, std=0.01)
    assert whole.shape == (100, dim)
    assert whole.dtype == np.float32
    for start, stop in [(0, 1), (37, 38), (33, 66), (99, 100), (50, 50)]:
        assert np.array_equal(initial_rows(start, stop, dim, 4, 0.01), whole[start:stop])
    assert not np.array_equal(initial_rows(0, 100, dim, 5, 0.01), whole)


def test_initial_rows_are_normal():
    rows = initial_rows(10**8, 10**8 + 4000, 64, seed=0, std=0.01).astype(np.float64) / 0.01
    n = rows.size
    assert abs(rows.mean()) < 5 / np.sqrt(n)
    assert abs(rows.std() - 1) < 5 / np.sqrt(2 * n)
    assert abs((rows**4).mean() - 3) < 5 * np.sqrt(96 / n)
    quantiles = np.quantile(rows, [0.001, 0.1587, 0.5, 0.8413, 0.999])
    assert np.allclose(quantiles, [-3.09, -1, 0, 1, 3.09], atol=0.05)
    correlation = np.corrcoef(rows.T) - np.eye(64)
    assert np.abs(correlation).max() < 6 / np.sqrt(4000)
    assert len(np.unique(rows.view("V512"))) == 4000  # no two classes alike


def table_rows(num_classes, chunk, **kwargs):
    """The rows of this rank as the head made them."""
    class_table.INIT_CHUNK_ROWS = chunk
    head = mp.ModelParallelSoftmax(5, num_classes, **kwargs)
    return head.local_range, head.state_dict()["weight"].to_local()


def test_same_table_at_every_world_size(ranks):
    tables = {}
    for world, chunk in [(1, 16_384), (2, 7), (3, 16_384), (4, 1)]:
        results = ranks.run(table_rows, world, num_classes=23, chunk=chunk, seed=1, init_std=0.3)
        assert [r for r, _ in results] == [local_range(23, world, k) for k in range(world)]
        tables[world] = torch.cat([rows for _, rows in results])
        shards = [rows[: len(results[-1][1])] for _, rows in results]
        assert len({shard.numpy().tobytes() for shard in shards}) == world
    assert all(torch.equal(table, tables[1]) for table in tables.values())


def test_row_dtype_and_std():
    head = mp.ModelParallelSoftmax(64, 1000, row_dtype=torch.float64, init_std=2.0)
    weight = head.state_dict()["weight"]
    assert weight.dtype == torch.float64
    assert abs(weight.std().item() - 2.0) < 0.05
