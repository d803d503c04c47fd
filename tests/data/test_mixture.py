"""The order over several data sets: shares, determinism, cuts, and epochs."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsoftmax.data.mixture import MixtureOrder
from mpsoftmax.data.order import ClassesOrder, ImagesOrder, PKOrder, share

SIZES = (5, 17, 40)
STARTS = (0, 5, 22)


def mixture(weights, sizes=SIZES, seed=3, kind=ImagesOrder):
    orders = [kind(np.arange(size) // 2, seed + b) for b, size in enumerate(sizes)]
    return MixtureOrder(orders, np.cumsum([0, *sizes[:-1]]).tolist(), weights)


def deviations(order, weights, num):
    """[num, sets]: draws of each set among the first n, less n times its share."""
    sets, _ = order.draws(0, num)
    counts = np.cumsum(np.eye(len(weights))[sets], axis=0)
    return counts - np.arange(1, num + 1)[:, None] * np.divide(weights, sum(weights))


weights_of_sets = st.lists(
    st.one_of(st.integers(1, 20), st.floats(0.01, 50, allow_subnormal=False)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60)
@given(weights=weights_of_sets)
def test_every_prefix_has_the_stated_shares(weights):
    order = mixture(weights, sizes=[3] * len(weights))
    shares = np.divide(weights, sum(weights))
    off = abs(deviations(order, weights, 600)).max(axis=0)
    assert (off <= (1 + (len(weights) - 2) * shares) / 2 + 1e-6).all()


@settings(max_examples=60)
@given(weights=st.lists(st.floats(0.01, 50), min_size=2, max_size=3))
def test_two_sets_are_within_half_a_sample_and_three_within_one(weights):
    off = abs(deviations(mixture(weights, sizes=[3] * len(weights)), weights, 600)).max()
    assert off < (0.5 + 1e-6 if len(weights) == 2 else 1.0)


def test_shares_are_exact_after_a_whole_number_of_turns():
    sets, _ = mixture([3, 1, 2]).draws(0, 6 * 1000)
    assert (np.stack([(sets.reshape(-1, 6) == b).sum(1) for b in range(3)], 1) == [3, 1, 2]).all()
    assert np.bincount(mixture([0.5, 0.3, 0.2]).draws(0, 1000)[0]).tolist() == [500, 300, 200]


def test_with_image_counts_as_weights_an_epoch_visits_every_image_once():
    total = sum(SIZES)
    epochs = mixture(SIZES).samples(0, 4 * total).reshape(4, total)
    assert (np.sort(epochs, axis=1) == np.arange(total)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_each_set_is_its_own_stream_and_small_ones_start_anew_sooner():
    stream = mixture([1, 1, 1]).samples(0, 600)
    for b, (start, size) in enumerate(zip(STARTS, SIZES, strict=True)):
        mine = stream[(stream >= start) & (stream < start + size)]
        own = ImagesOrder(np.empty(size), 3 + b).samples(0, len(mine))
        assert len(mine) == 200
        assert np.array_equal(mine - start, own)


@settings(max_examples=40)
@given(
    weights=st.lists(st.sampled_from([1, 2, 7, 0.3, 40, 9525]), min_size=3, max_size=3),
    start=st.integers(0, 3000),
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6),
    kind=st.sampled_from([ImagesOrder, ClassesOrder]),
)
def test_any_cutting_gives_the_same_stream(weights, start, sizes, kind):
    stop = start + sum(sizes)
    expected = mixture(weights, kind=kind).samples(0, stop)[start:]
    bounds = np.cumsum([start, *sizes]).tolist()
    pieces = mixture(weights, kind=kind)
    parts = [pieces.samples(a, b) for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts), expected)
    assert expected.dtype == np.int64


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_resumed_at_any_position_and_world_size_the_stream_goes_on(world):
    expected = mixture([5, 2, 1]).samples(0, 400)
    read, position, order = [], 130, mixture([5, 2, 1])
    while position < 400:
        parts = [share(10, rank, world) for rank in range(world)]
        read += [order.samples(position + low, position + high) for low, high in parts]
        position += 10
    assert np.array_equal(np.concatenate(read), expected[130:])


def test_far_positions_are_entered_at_once():
    order, far = mixture([5800000, 3300000, 100]), 10**12
    whole = order.samples(far, far + 500)
    again = mixture([5800000, 3300000, 100])
    parts = [again.samples(far + low, far + low + 100) for low in range(0, 500, 100)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_groups_of_one_class_stay_together():
    labels = [np.arange(12) // 3, np.arange(40) // 4]
    order = MixtureOrder([PKOrder(own, 1, 2) for own in labels], [0, 12], [1, 3], group=2)
    joined = np.concatenate([labels[0], labels[1] + 100])
    stream = order.samples(0, 800)
    groups = joined[stream].reshape(-1, 2)
    assert (groups[:, 0] == groups[:, 1]).all()
    assert (groups[:, 0] >= 100).sum() == 300
    assert np.array_equal(
        np.concatenate([order.samples(0, 7), order.samples(7, 801)])[:800], stream
    )


def test_arguments_are_checked():
    for weights, message in (
        ([1, 0, 1], "weights: [1, 0, 1]: expected positive"),
        ([1, float("inf"), 1], "expected positive"),
        ([1, float("nan"), 1], "expected positive"),
        ([1, 1], "mixture of 3 orders, 3 starts, 2 weights"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            mixture(weights)
    with pytest.raises(ValueError, match="group: 0"):
        MixtureOrder([ImagesOrder(np.zeros(3), 0)], [0], [1], group=0)
    with pytest.raises(ValueError, match="positions"):
        mixture([1, 1, 1]).samples(3, 2)
