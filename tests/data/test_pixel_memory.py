"""Copies that change how bytes lie, and no pixel."""

import numpy as np
import pytest

from mpsoftmax.data.pixel_memory import empty_planes, pixelwise, planes_of

IMAGE = np.random.default_rng(0).integers(0, 256, (13, 7, 3), dtype=np.uint8)
LYING = {
    "pixels": IMAGE,
    "mirrored": IMAGE[:, ::-1],
    "cut": IMAGE[2:9, 1:4],
    "planes": np.ascontiguousarray(IMAGE.transpose(2, 0, 1)).transpose(1, 2, 0),
    "one pixel": IMAGE[:1, :1],
}


@pytest.mark.parametrize("image", LYING.values(), ids=LYING)
def test_pixels_stay_and_lie_as_asked(image):
    before = image.copy()
    planes, floats, pixels = planes_of(image), planes_of(image, np.float32), pixelwise(image)
    assert planes.dtype == np.uint8
    assert floats.dtype == np.float32
    for found in (planes, floats):
        assert found.flags.c_contiguous
        assert np.array_equal(found.transpose(1, 2, 0), before)
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, before)
    planes[:] = 0
    assert np.array_equal(image, before)


def test_no_copy_where_none_is_needed_and_planes_to_fill():
    assert pixelwise(IMAGE) is IMAGE
    out = empty_planes(IMAGE.shape)
    assert out.shape == IMAGE.shape
    assert out.transpose(2, 0, 1).flags.c_contiguous
