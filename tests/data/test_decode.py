"""Decoding by every installed decoder."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from mpsoftmax.data.decode import DECODERS, CorruptImage, check_decoder, decode, original_size

MODULES = {"pillow": "PIL", "simplejpeg": "simplejpeg", "opencv": "cv2"}


def decoders():
    for name in DECODERS:
        missing = importlib.util.find_spec(MODULES[name]) is None
        yield pytest.param(
            name, marks=pytest.mark.skipif(missing, reason=f"{MODULES[name]} is not installed")
        )


def picture(height=40, width=24):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 6, x * 10, 255 - y * 3], axis=2).astype(np.uint8)


def encoded(pixels, format="JPEG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("decoder", list(decoders()))
def test_a_jpeg_comes_back_as_rgb(decoder):
    out = decode(encoded(picture(), quality=95), (40, 24), decoder)
    assert out.dtype == np.uint8
    assert out.shape == (40, 24, 3)
    assert abs(out.astype(int) - picture()).mean() < 3


@pytest.mark.parametrize("decoder", list(decoders()))
def test_grey_and_resized(decoder):
    out = decode(encoded(picture(), mode="L", quality=95), (20, 12), decoder)
    assert out.shape == (20, 12, 3)
    assert (out[..., 0] == out[..., 2]).all()
    expected = Image.fromarray(picture()).convert("L").resize((12, 20), Image.Resampling.BILINEAR)
    assert abs(out[..., 0].astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("decoder", list(decoders()))
def test_a_noted_orientation_is_ignored(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    out = decode(encoded(picture(), quality=95, exif=exif), (40, 24), decoder)
    assert abs(out.astype(int) - picture()).mean() < 3


@pytest.mark.parametrize("decoder", list(decoders()))
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_damage_is_reported(decoder, damage):
    whole = encoded(np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8))
    data = {"empty": b"", "text": b"not an image at all", "truncated": whole[: len(whole) // 2]}
    with pytest.raises(CorruptImage, match="^empty file$" if damage == "empty" else None) as error:
        decode(data[damage], (40, 24), decoder)
    assert "object at 0x" not in str(error.value)
    if damage != "truncated":
        with pytest.raises(CorruptImage, match=r"^(empty file|no known image format)$"):
            original_size(data[damage])


@pytest.mark.parametrize(("format", "mode"), [("PNG", "RGBA"), ("PNG", "P"), ("BMP", "RGB")])
def test_pillow_reads_other_formats(format, mode):
    out = decode(encoded(picture(), format, mode), (40, 24))
    assert abs(out.astype(int) - picture()).mean() < (0.01 if mode != "P" else 40)


def grey_of_16_bits():
    return (np.arange(40 * 24, dtype=np.uint16) * 68).reshape(40, 24)  # 0 .. 65212


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])  # Pillow's modes I;16, I;16 and I
def test_16_bits_become_the_upper_8(format):
    buffer = io.BytesIO()
    Image.fromarray(grey_of_16_bits()).save(buffer, format)
    out = decode(buffer.getvalue(), (40, 24))
    assert out.dtype == np.uint8
    assert (out == (grey_of_16_bits() >> 8)[:, :, None]).all()


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.int32, "32-bit whole numbers"), (np.float32, "floating-point numbers")]
)
def test_grey_of_unknown_range_is_refused(dtype, kind):
    buffer = io.BytesIO()
    Image.fromarray(grey_of_16_bits().astype(dtype)).save(buffer, "TIFF")
    message = f"Pillow: pixels are {kind} of unknown range; allowed: 8 or 16 bits a channel"
    with pytest.raises(CorruptImage, match=message):
        decode(buffer.getvalue(), (40, 24))


def test_simplejpeg_refuses_what_is_no_jpeg():
    pytest.importorskip("simplejpeg")
    with pytest.raises(CorruptImage, match="not a JPEG"):
        decode(encoded(picture(), "PNG"), (40, 24), "simplejpeg")


def test_pixels_pass_through_or_are_resized():
    pixels = picture()
    assert np.array_equal(decode(pixels, (40, 24)), pixels)
    small = decode(pixels, (10, 12))
    expected = Image.fromarray(pixels).resize((12, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(small, np.asarray(expected))
    with pytest.raises(ValueError, match=r"not uint8 \[H, W, 3\]"):
        decode(pixels[:, :, 0], (40, 24))
    with pytest.raises(ValueError, match="float64"):
        decode(pixels / 255, (40, 24))


def test_unknown_and_missing_decoders_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="decoder: 'turbo' is not one of pillow"):
        check_decoder("turbo")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match="pip install opencv-python-headless"):
        check_decoder("opencv")
