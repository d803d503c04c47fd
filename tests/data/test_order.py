"""Endless streams of sample indices."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsoftmax.data.order import ClassesOrder, ImagesOrder, PKOrder, share

LABELS = np.array([2, 0, 2, 5, -1, 2, 0, 5, 5, 5, 2, 7, -1, 2, 5])


def members(label):
    return set(np.flatnonzero(label == LABELS).tolist())


def orders(seed=3):
    return [ImagesOrder(LABELS, seed), ClassesOrder(LABELS, seed), PKOrder(LABELS, seed, 2)]


def test_every_epoch_of_images_is_another_permutation():
    order = ImagesOrder(LABELS, seed=1)
    epochs = order.samples(0, 5 * 15).reshape(5, 15)
    assert (np.sort(epochs, axis=1) == np.arange(15)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5
    assert not np.array_equal(epochs[0], ImagesOrder(LABELS, seed=2).samples(0, 15))


@settings(deadline=None, max_examples=40)
@given(start=st.integers(0, 100), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_any_cutting_gives_the_same_stream(start, sizes):
    stop = start + sum(sizes)
    for whole, pieces in zip(orders(), orders(), strict=True):
        bounds = np.cumsum([start, *sizes]).tolist()
        parts = [pieces.samples(a, b) for a, b in itertools.pairwise(bounds)]
        expected = whole.samples(0, stop)[start:]
        assert np.array_equal(np.concatenate(parts), expected)
        assert expected.dtype == np.int64


@given(num=st.integers(0, 300), world=st.integers(1, 17))
def test_shares_tile_a_cut(num, world):
    parts = [share(num, rank, world) for rank in range(world)]
    assert parts[0][0] == 0
    assert parts[-1][1] == num
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    sizes = [hi - lo for lo, hi in parts]
    assert max(sizes) - min(sizes) <= 1


def test_ranks_together_read_what_one_rank_reads():
    for make in (lambda: ImagesOrder(LABELS, 9), lambda: PKOrder(LABELS, 9, 3)):
        alone = make().samples(0, 100)
        for world in (2, 3, 5):
            position, read = 0, []
            while position < 100:
                for rank in range(world):
                    lo, hi = share(10, rank, world)
                    read.append(make().samples(position + lo, position + hi))
                position += 10
            assert np.array_equal(np.concatenate(read), alone)


def test_classes_are_visited_once_a_round_and_their_images_used_equally():
    stream = ClassesOrder(LABELS, seed=4).samples(0, 4 * 60)
    rounds = LABELS[stream].reshape(60, 4)
    assert (np.sort(rounds, axis=1) == [0, 2, 5, 7]).all()
    assert len({tuple(r) for r in rounds.tolist()}) > 10
    counts = np.bincount(stream, minlength=15)
    assert set(counts[[1, 6]]) == {30}  # class 0, 2 images
    assert set(counts[sorted(members(2))]) == {12}  # 5 images, 60 visits
    assert counts[4] == counts[12] == 0  # label -1


def test_a_class_is_walked_in_changing_random_order():
    labels = np.zeros(6, np.int64)
    cycles = ClassesOrder(labels, seed=0).samples(0, 6 * 720 * 5).reshape(-1, 6)
    assert (np.sort(cycles, axis=1) == np.arange(6)).all()
    # Of 3600 random permutations of 6 elements, 720 (1 - 1/e^5) = 715 different ones are expected.
    assert len({tuple(c) for c in cycles.tolist()}) > 690
    # Each image stands about equally often at each place (600 +- 22).
    table = np.stack([np.bincount(cycles[:, place], minlength=6) for place in range(6)])
    assert abs(table - 600).max() < 110


@pytest.mark.parametrize("k", [2, 4])
def test_groups_of_one_class(k):
    stream = PKOrder(LABELS, seed=7, images_per_class=k).samples(0, k * 4 * 30).reshape(-1, k)
    assert (LABELS[stream] == LABELS[stream][:, :1]).all()
    rounds = LABELS[stream[:, 0]].reshape(-1, 4)
    assert (np.sort(rounds, axis=1) == [0, 2, 5, 7]).all()
    for group in stream.tolist():
        num_images = len(members(LABELS[group[0]]))
        assert len(set(group)) == min(k, num_images)
    assert set(np.unique(stream)) == set(np.flatnonzero(LABELS >= 0))


def test_order_arguments_are_checked():
    with pytest.raises(ValueError, match="labels: there are no samples"):
        ImagesOrder(np.empty(0, np.int64), 0)
    with pytest.raises(ValueError, match="no labelled samples"):
        ClassesOrder(np.array([-1, -1]), 0)
    with pytest.raises(ValueError, match="images_per_class: 0"):
        PKOrder(LABELS, 0, 0)
    with pytest.raises(ValueError, match="seed: -1"):
        ImagesOrder(LABELS, -1)
    with pytest.raises(ValueError, match="positions"):
        ImagesOrder(LABELS, 0).samples(-1, 3)
    with pytest.raises(ValueError, match="rank 2, world 2"):
        share(10, 2, 2)
