"""Synthetic images: deterministic, bounded memory, learnable."""

import pickle

import numpy as np
import pytest

from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.synthetic import Synthetic


def test_images_are_pure_functions_of_seed_and_index():
    one = Synthetic(num_classes=5, images_per_class=3, size=(24, 16), seed=1)
    other = pickle.loads(pickle.dumps(one))
    assert isinstance(one, ImageSet)
    assert len(one) == 15
    assert one.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    first = [one.image(i) for i in range(15)]
    assert all(image.shape == (24, 16, 3) and image.dtype == np.uint8 for image in first)
    assert all(np.array_equal(first[i], other.image(i)) for i in reversed(range(15)))
    assert len({image.tobytes() for image in first}) == 15
    again = Synthetic(num_classes=5, images_per_class=3, size=(24, 16), seed=2)
    assert not np.array_equal(first[0], again.image(0))


def test_a_class_does_not_depend_on_the_number_of_classes():
    small = Synthetic(num_classes=2, images_per_class=4, size=(16, 16))
    large = Synthetic(num_classes=500, images_per_class=4, size=(16, 16))
    assert np.array_equal(small.image(7), large.image(7))


def test_names():
    images = Synthetic(num_classes=3, images_per_class=2)
    assert list(images.class_names) == ["class-000000", "class-000001", "class-000002"]
    assert images.class_names[1:] == ["class-000001", "class-000002"]
    assert images.name(3) == "synthetic class-000001 image 1"
    with pytest.raises(IndexError):
        images.class_names[3]


def test_classes_can_be_learned():
    images = Synthetic(num_classes=20, images_per_class=8, size=(32, 32))
    pixels = np.stack([images.image(i) for i in range(len(images))]).reshape(20, 8, -1) / 255
    means = pixels[:, :4].mean(axis=1)
    queries = pixels[:, 4:].reshape(80, -1)
    distances = ((queries[:, None] - means[None]) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == np.repeat(np.arange(20), 4)).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes: 0"),
        ({"images_per_class": -1}, "images_per_class: -1"),
        ({"size": (4, 32)}, "size"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Synthetic(**options)
