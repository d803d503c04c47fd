"""Classes held back from training, and the pairs they give."""

import numpy as np
import pytest
from given_images import GivenImages

from mpsoftmax.data.balanced_pairs import class_pairs
from mpsoftmax.data.held_back import hold_back


def images_of(labels):
    names = [f"class {k}" for k in range(max(labels) + 1)]
    return GivenImages([bytes([k]) for k in range(len(labels))], labels, names)


LABELS = [0, 0, 0, 1, 2, 2, -1, 3, 3, 3, 4, 4, 5]


def test_both_parts_together_are_the_set():
    images = images_of(LABELS)
    train, held = hold_back(images, 2, seed=1)
    assert (len(train.class_names), len(held.class_names)) == (4, 2)
    assert not set(train.class_names) & set(held.class_names)
    assert set(held.class_names) <= {"class 0", "class 2", "class 3", "class 4"}
    assert sorted([*train.indices, *held.indices]) == list(range(13))
    assert 6 in train.indices
    for part in (train, held):
        for k, label in enumerate(part.labels):
            was = images.labels[part.indices[k]]
            assert (label, was) == (-1, -1) or part.class_names[label] == f"class {was}"
    again = hold_back(images, 2, seed=1)[1]
    assert list(again.class_names) == list(held.class_names)
    chosen = {tuple(hold_back(images, 2, seed)[1].class_names) for seed in range(20)}
    assert len(chosen) > 3


def test_too_many_classes():
    with pytest.raises(ValueError, match="5 classes to hold back; allowed: at most 4 of these 6"):
        hold_back(images_of(LABELS), 5, seed=0)
    with pytest.raises(ValueError, match="allowed: at most 0"):
        hold_back(images_of([0, 0, 1, 1]), 1, seed=0)


@pytest.mark.parametrize("most", [20, 60, 200])
def test_pairs_are_balanced_in_every_fold_and_none_comes_twice(most):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(30), rng.integers(1, 9, 30)), [-1] * 5])
    pairs, same = class_pairs(labels, most, seed=3)
    assert len(pairs) == len(same) == most
    assert np.array_equal(labels[pairs[:, 0]] == labels[pairs[:, 1]], same)
    assert (labels[pairs] >= 0).all()
    assert (same.reshape(10, -1).sum(1) == most // 20).all()
    assert len({frozenset(pair) for pair in pairs.tolist()}) == most
    assert (pairs[:, 0] != pairs[:, 1]).all()
    again = class_pairs(labels, most, seed=3)[0]
    assert np.array_equal(pairs, again)
    assert not np.array_equal(pairs, class_pairs(labels, most, seed=4)[0])


def test_classes_take_turns_and_all_pairs_are_used_where_few():
    labels = np.repeat(np.arange(10), 3)  # 3 pairs a class
    pairs, same = class_pairs(labels, 6000, seed=0)
    assert same.sum() == 30
    counts = np.bincount(labels[pairs[same][:, 0]], minlength=10)
    assert (counts == 3).all()
    large = np.concatenate([np.repeat([0], 500), np.repeat(np.arange(1, 10), 2)])
    of_class = large[class_pairs(large, 40, seed=0)[0]]
    turns = np.bincount(of_class[of_class[:, 0] == of_class[:, 1]][:, 0], minlength=10)
    assert turns[1:].tolist() == [1] * 9
    assert turns[0] == 11


def test_too_few_pairs():
    with pytest.raises(
        ValueError, match="9 classes give 9 pairs of the same class and 144 of diff"
    ):
        class_pairs(np.repeat(np.arange(9), 2), 6000, seed=0)
