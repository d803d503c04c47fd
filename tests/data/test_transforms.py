"""Augmentations: same size, pure, as their settings say."""

import math

import numpy as np
import pytest

from mpsoftmax.data.transforms import (
    DEFAULTS,
    TRANSFORMS,
    Affine,
    Colour,
    Crop,
    Erase,
    Flip,
    LowResolution,
    build,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(height=37, width=21, seed=5):
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


ALL = [
    Flip(p=1),
    Crop(pad=6),
    Crop(pad=60),
    Erase(p=1),
    Colour(grey=0.5),
    LowResolution(p=1),
    Affine(),
]


@pytest.mark.parametrize("transform", ALL, ids=str)
@pytest.mark.parametrize("shape", [(37, 21), (1, 1), (8, 64)])
def test_same_size_pure_and_repeatable(transform, shape):
    image = noise(*shape)
    before = image.copy()
    image.setflags(write=False)
    outs = [transform(image, rng(3)) for _ in range(2)]
    assert outs[0].shape == before.shape
    assert outs[0].dtype == np.uint8
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(image, before)
    # Mirrored views, as Flip returns them, are as good as any other array.
    mirrored = transform(image[:, ::-1], rng(3))
    assert np.array_equal(mirrored, transform(np.ascontiguousarray(image[:, ::-1]), rng(3)))


@pytest.mark.parametrize("transform", [Flip(p=0.0), Erase(p=0), LowResolution(p=0), Affine(p=0)])
def test_probability_zero_changes_nothing(transform):
    generator = rng(1)
    assert all(np.array_equal(transform(noise(), generator), noise()) for _ in range(20))


def test_flip_mirrors_about_half_of_the_images():
    generator, image = rng(), noise()
    outs = [Flip()(image, generator) for _ in range(400)]
    mirrored = sum(np.array_equal(out, image[:, ::-1]) for out in outs)
    assert all(np.array_equal(out, image) or np.array_equal(out, image[:, ::-1]) for out in outs)
    assert 150 < mirrored < 250


def test_crop_is_a_shift_over_a_border():
    image, pad, fill = noise(20, 14), 3, (9, 8, 7)
    padded = np.empty((26, 20, 3), np.uint8)
    padded[:] = fill
    padded[3:23, 3:17] = image
    windows = {padded[y : y + 20, x : x + 14].tobytes() for y in range(7) for x in range(7)}
    generator = rng()
    outs = {Crop(pad=pad, fill=fill)(image, generator).tobytes() for _ in range(600)}
    assert outs == windows


def test_erase_fills_one_rectangle_of_the_stated_area():
    generator, fill = rng(), (1, 2, 3)
    image = np.full((60, 40, 3), 200, np.uint8)
    erase = Erase(p=1, area=(0.1, 0.3), aspect=(0.5, 2.0), fill=fill)
    for _ in range(200):
        out = erase(image, generator)
        hit = (out == fill).all(axis=2)
        rows, columns = np.flatnonzero(hit.any(axis=1)), np.flatnonzero(hit.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert hit.sum() == height * width
        assert 0.085 < hit.mean() < 0.33
        assert 0.4 < height / width < 2.3
        assert (out[~hit] == 200).all()


def test_colour_follows_the_formula():
    image = noise(30, 30)
    luma = image.astype(float) @ [0.299, 0.587, 0.114]

    def factor(name, value):  # the factor a generator gives to one change alone
        generator = rng(8)
        generator.random(2)
        return 1 + generator.uniform(-1, 1, 3)["bcs".index(name)] * value

    def check(out, expected):
        assert abs(out - np.clip(expected, 0, 255)).max() <= 0.51

    brighter = Colour(brightness=0.5, contrast=0, saturation=0)(image, rng(8))
    check(brighter, image * factor("b", 0.5))
    contrast = Colour(brightness=0, contrast=0.5, saturation=0)(image, rng(8))
    check(contrast, (image - luma.mean()) * factor("c", 0.5) + luma.mean())
    saturated = Colour(brightness=0, contrast=0, saturation=0.5)(image, rng(8))
    grey = luma[..., None]
    check(saturated, (image - grey) * factor("s", 0.5) + grey)
    none = Colour(brightness=0, contrast=0, saturation=0)(image, rng(8))
    assert np.array_equal(none, image)


def test_colour_can_take_colour_away():
    out = Colour(p=0, grey=1)(noise(), rng())
    assert (out[..., 0] == out[..., 1]).all()
    assert (out[..., 0] == out[..., 2]).all()


def test_low_resolution_removes_detail_only():
    checker = ((np.indices((32, 32)).sum(axis=0) % 2) * 255).astype(np.uint8)
    image = np.repeat(checker[..., None], 3, axis=2)
    out = LowResolution(p=1, scale=(0.25, 0.25))(image, rng())
    assert out.std() < 15
    assert abs(out.mean() - 127.5) < 5
    assert np.array_equal(LowResolution(p=1, scale=(1, 1))(noise(), rng()), noise())


def test_affine_moves_zooms_and_turns():
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[19:22, 29:32] = 255  # 10 pixels to the right of the middle

    def centre(image):
        y, x = np.nonzero(image[..., 0] > 60)
        return y.mean() - 20, x.mean() - 20

    shifted = [centre(Affine(shift=0.2, zoom=0, rotation_rad=0)(dot, rng(s))) for s in range(40)]
    downs, rights = np.array(shifted).T
    assert 6 < np.ptp(downs) <= 17
    assert downs.min() > -9
    assert downs.max() < 9
    assert rights.max() < 10 + 9
    zoomed = [centre(Affine(shift=0, zoom=0.5, rotation_rad=0)(dot, rng(s))) for s in range(40)]
    assert max(abs(y) for y, _ in zoomed) < 0.6
    assert 4.5 < min(x for _, x in zoomed) < 7
    assert 13 < max(x for _, x in zoomed) < 15.6
    turned = [
        centre(Affine(shift=0, zoom=0, rotation_rad=math.pi / 2)(dot, rng(s))) for s in range(40)
    ]
    assert all(abs(math.hypot(y, x) - 10) < 0.7 for y, x in turned)
    angles = [math.atan2(y, x) for y, x in turned]
    assert max(angles) > 1.2
    assert min(angles) < -1.2


def test_build_is_strict():
    built = build([{"kind": "flip"}, {"kind": "erase", "p": 0.3, "area": [0.1, 0.2]}])
    assert built == (Flip(), Erase(p=0.3, area=(0.1, 0.2)))
    assert build([]) == ()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"p": 0.5}, r"augment\[0\].*kind"),
        ("flip", r"augment\[0\].*kind"),
        ({"kind": "flipp"}, r"augment\[0\]\.kind: .*did you mean 'flip'"),
        ({"kind": "crop", "pda": 3}, r"augment\[0\]\.pda: crop has no .*did you mean 'pad'"),
        ({"kind": "crop", "pad": 0}, r"augment\[0\]\.pad: 0"),
        ({"kind": "crop", "pad": True}, "pad: True"),
        ({"kind": "flip", "p": 1.5}, r"p: 1\.5 is not a number in \[0, 1\]"),
        ({"kind": "flip", "p": "often"}, "p: 'often'"),
        ({"kind": "erase", "area": [0.5, 0.2]}, "area"),
        ({"kind": "erase", "area": 0.5}, "area"),
        ({"kind": "erase", "fill": [0, 0, 300]}, "fill"),
        ({"kind": "low_resolution", "scale": [0, 1]}, "scale"),
        ({"kind": "affine", "rotation_rad": 30}, "rotation_rad: 30"),
        ({"kind": "affine", "zoom": 1}, "zoom: 1"),
        ({"kind": "colour", "contrast": -1}, "contrast: -1"),
    ],
)
def test_bad_descriptions_name_the_field(description, message):
    with pytest.raises(ValueError, match=message):
        build([description])


def test_defaults_of_the_tasks():
    assert DEFAULTS["none"] == ()
    assert DEFAULTS["face"] == (Flip(p=0.5),)
    assert DEFAULTS["reid"] == (Flip(p=0.5), Crop(pad=10), Erase(p=0.5))
    assert not any(isinstance(transform, Flip) for transform in DEFAULTS["glyph"])
    assert set(TRANSFORMS) == {"flip", "crop", "erase", "colour", "low_resolution", "affine"}
