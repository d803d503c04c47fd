"""Groups in random order, samples shuffled within windows of groups."""

import itertools

import numpy as np
import pytest
from given_images import GivenImages
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsoftmax.data.convert import convert
from mpsoftmax.data.grouped_order import GroupedOrder, group_starts
from mpsoftmax.data.image_set import keep_classes, keep_part
from mpsoftmax.data.loader import Loader
from mpsoftmax.data.open import open_images
from mpsoftmax.data.order import share
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.data.view import write_view

STARTS = np.array([0, 4, 5, 9, 12, 13, 20])


def groups_of(samples):
    return np.searchsorted(STARTS, samples, side="right") - 1


def test_an_epoch_is_a_permutation_and_windows_hold_whole_groups():
    order = GroupedOrder(STARTS, seed=5, window=2)
    epochs = order.samples(0, 60).reshape(3, 20)
    assert (np.sort(epochs, axis=1) == np.arange(20)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    for epoch in epochs:
        groups, seen = groups_of(epoch), []
        while len(groups):
            window = list(dict.fromkeys(groups.tolist()))[:2]
            size = sum(int(STARTS[g + 1] - STARTS[g]) for g in window)
            assert set(groups[:size].tolist()) == set(window)
            seen += window
            groups = groups[size:]
        assert sorted(seen) == list(range(6))
    other = GroupedOrder(STARTS, seed=6, window=2).samples(0, 20)
    assert not np.array_equal(epochs[0], other)
    whole = GroupedOrder(STARTS, seed=5, window=6).samples(0, 20)
    assert sorted(whole.tolist()) == list(range(20))


@settings(deadline=None, max_examples=60)
@given(
    start=st.integers(0, 70),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    window=st.integers(1, 8),
)
def test_any_cutting_gives_the_same_stream(start, sizes, window):
    stop = start + sum(sizes)
    pieces = GroupedOrder(STARTS, 3, window)
    bounds = np.cumsum([start, *sizes]).tolist()
    parts = [pieces.samples(a, b) for a, b in itertools.pairwise(bounds)]
    expected = GroupedOrder(STARTS, 3, window).samples(0, stop)[start:]
    assert np.array_equal(np.concatenate(parts), expected)


def test_ranks_together_read_what_one_rank_reads():
    alone = GroupedOrder(STARTS, 9, 2).samples(0, 60)
    for world in (2, 3, 5):
        mine = [GroupedOrder(STARTS, 9, 2) for _ in range(world)]
        read = []
        for position in range(0, 60, 7):
            size = min(7, 60 - position)
            for rank in range(world):
                low, high = share(size, rank, world)
                read.append(mine[rank].samples(position + low, position + high))
        assert np.array_equal(np.concatenate(read), alone)


def test_positions_are_uniform():
    """Over many epochs every sample is as often in each tenth of the epoch as in any other."""
    order = GroupedOrder(np.arange(0, 41, 4), seed=1, window=3)
    counts = np.zeros((40, 10))
    for epoch in range(2000):
        samples = order.samples(40 * epoch, 40 * epoch + 40)
        counts[samples, np.arange(40) // 4] += 1
    assert abs(counts / 2000 - 0.1).max() < 5 * np.sqrt(0.09 / 2000)


@pytest.mark.parametrize(
    ("starts", "seed", "window", "message"),
    [
        ([0], 0, 1, "starts"),
        ([0, 2, 2], 0, 1, "starts"),
        ([1, 2], 0, 1, "starts"),
        ([0, 2], -1, 1, "seed"),
        ([0, 2], 0, 0, "window"),
    ],
)
def test_bad_arguments(starts, seed, window, message):
    with pytest.raises(ValueError, match=message):
        GroupedOrder(np.array(starts), seed, window)


def test_views_keep_the_groups(tmp_path):
    labels = [k // 50 for k in range(250)]
    images = GivenImages([b"x"] * 250, labels, list("abcde"))
    assert group_starts(images) is None
    convert(images, tmp_path / "a.parquet")
    stored = open_images(tmp_path / "a.parquet")
    assert group_starts(stored).tolist() == [0, 100, 200, 250]
    assert group_starts(keep_part(stored, 2, 2)).tolist() == [0, 50, 100, 125]
    few = GivenImages([b"x"] * 250, [0] * 100 + [1] * 3 + [0] * 97 + [2] * 50, list("abc"))
    convert(few, tmp_path / "b.parquet")
    kept = keep_classes(open_images(tmp_path / "b.parquet"), 4)
    assert group_starts(kept).tolist() == [0, 100, 197, 247]
    path = tmp_path / "a.view.json"
    write_view(path, tmp_path / "a.parquet", stored, drop=[3, 120], relabel={7: 1}, merge=[(0, 4)])
    assert group_starts(open_images(path)).tolist() == [0, 99, 198, 248]
    again = open_images(path)
    with pytest.raises(ValueError, match="a view is of no other view"):
        write_view(tmp_path / "b.view.json", path, again, drop=[], relabel={}, merge=[])


@pytest.mark.parametrize(("window", "cache"), [(1, 1), (4, 4)])
def test_each_row_group_is_read_once_an_epoch(tmp_path, window, cache):
    """What the order is for; single samples in random order read about one group a sample."""
    source = Synthetic(num_classes=100, images_per_class=12, size=(8, 8))
    convert(source, tmp_path / "a.parquet")
    images = open_images(tmp_path / "a.parquet", cache_groups=cache)
    order = GroupedOrder(images.group_starts, 0, window)
    loader = Loader(images, order, size=(8, 8))
    labels = [b.labels for b in loader.stream([(k, k + 60) for k in range(0, 1200, 60)])]
    assert sorted(np.concatenate(labels).tolist()) == sorted(source.labels.tolist())
    assert images.reads == 12
