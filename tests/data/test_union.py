"""Several image sets as one, and parts of one set."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from mpsoftmax.data.image_set import ImageSet, keep_classes, keep_part
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.data.union import Union


@dataclass(frozen=True)
class Listed:
    """A set of named one-byte images."""

    labels: np.ndarray
    class_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> bytes:
        return bytes([index])

    def name(self, index: int) -> str:
        return f"image {index}"


ONE = Listed(np.array([0, 1, -1, 1]), ("ann", "bob"))
TWO = Listed(np.array([2, 0, 0]), ("bob", "cyd", "dee"))


def test_labels_lie_side_by_side_and_images_are_found():
    both = Union([ONE, TWO, ONE], ["a", "b", "c"])
    assert isinstance(both, ImageSet)
    assert both.labels.tolist() == [0, 1, -1, 1, 4, 2, 2, 5, 6, -1, 6]
    assert both.labels.dtype == np.int64
    assert (both.sizes, both.starts.tolist()) == ((2, 3, 2), [0, 4, 7, 11])
    assert [both.image(i)[0] for i in range(len(both))] == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]
    assert [both.name(i) for i in (3, 4, -1)] == ["a: image 3", "b: image 0", "c: image 3"]
    with pytest.raises(IndexError):
        both.image(11)


def test_names_that_sets_share_say_which_set():
    names = Union([ONE, TWO], ["a", "b"]).class_names
    assert list(names) == ["ann", "a:bob", "b:bob", "cyd", "dee"]
    assert names[-2:] == ["cyd", "dee"]
    assert len(Union([Synthetic(num_classes=3), ONE], ["s", "a"]).class_names) == 5


def test_a_union_is_picklable_for_workers():
    both = pickle.loads(pickle.dumps(Union([ONE, TWO], ["a", "b"])))
    assert list(both.class_names) == ["ann", "a:bob", "b:bob", "cyd", "dee"]


def test_sets_and_names_must_pair():
    with pytest.raises(ValueError, match="Union of 2 sets named"):
        Union([ONE, TWO], ["a"])
    with pytest.raises(ValueError, match="at least one set"):
        Union([], [])


def test_parts_are_disjoint_and_together_the_set():
    images = Listed(np.array([1, 0, 1, 1, -1, 0, 1, 1, 2]), ("x", "y", "z"))
    parts = [keep_part(images, number, 3) for number in (1, 2, 3)]
    assert [part.labels.tolist() for part in parts] == [[1, 0, -1, 1, 2], [1, 0, 1], [1]]
    assert sorted(part.image(i)[0] for part in parts for i in range(len(part))) == list(range(9))
    assert all(len(part.class_names) == 3 for part in parts)
    assert list(keep_classes(parts[1], 1).class_names) == ["x", "y"]
    with pytest.raises(ValueError, match="part 0/3"):
        keep_part(images, 0, 3)
