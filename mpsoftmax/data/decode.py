"""Image bytes to pixels, by a decoder chosen by name."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

DECODERS = ("pillow", "simplejpeg", "opencv")
_INSTALL = {"simplejpeg": "simplejpeg", "opencv": "opencv-python-headless"}


class CorruptImage(ValueError):
    """Bytes that are no complete image, or not one that the chosen decoder reads."""


def decode(
    data: bytes | np.ndarray, size: tuple[int, int], decoder: str = "pillow", crop: float = 1.0
) -> np.ndarray:
    """Decodes an image, takes its central part, and resizes it if it has another size.

    Decoders differ in the last bits of a JPEG, so which one was used belongs to a run's record;
    none is ever replaced by another. "pillow" reads most formats, "opencv" many, "simplejpeg" JPEG
    only. An orientation noted in the file is ignored by all three. Of 16 bits a channel the upper 8 are
    taken; grey of 32 bits or in floating point, whose range no file states, is refused.

    Args:
        data: encoded image, or decoded pixels uint8 [H, W, 3].
        size: (height, width) in pixels.
        decoder: one of `DECODERS`.
        crop: central share of each side that is kept, in (0, 1].

    Returns:
        RGB pixels, uint8 [height, width, 3]; resizing is bilinear and antialiased (Pillow's).

    Raises:
        CorruptImage: the bytes cannot be decoded.
        ValueError: unknown or uninstalled decoder, or pixels of another shape or type.
    """
    pixels = decode_whole(data, decoder)
    if crop < 1.0:
        pixels = centre(pixels, crop)
    if pixels.shape[:2] != size:
        height, width = size
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return pixels


def decode_whole(data: bytes | np.ndarray, decoder: str = "pillow") -> np.ndarray:
    """Pixels uint8 [H, W, 3] of an image at its own size; arguments and errors as of `decode`."""
    if isinstance(data, np.ndarray):
        return _checked(data)
    decode_bytes = _decoder(decoder)
    if not data:
        raise CorruptImage("empty file")
    return decode_bytes(data)


def original_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, from its header.

    Raises:
        CorruptImage: it is none.
    """
    if not data:
        raise CorruptImage("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptImage(_reason(error)) from error


def centre(pixels: np.ndarray, crop: float) -> np.ndarray:
    """The central share `crop` of each side, at least one pixel: a view of pixels [H, W, 3]."""
    height, width = (max(1, round(side * crop)) for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"data: pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]"
        )
    return pixels


def check_decoder(decoder: str) -> None:
    """Refuses a decoder that is unknown or not installed, before any image is read.

    Raises:
        ValueError: it is; says what is allowed or what to install.
    """
    _decoder(decoder)


def _decoder(decoder: str) -> Callable[[bytes], np.ndarray]:
    if decoder not in DECODERS:
        raise ValueError(f"decoder: {decoder!r} is not one of {', '.join(DECODERS)}")
    try:
        if decoder == "simplejpeg":
            import simplejpeg  # noqa: F401

            return _decode_simplejpeg
        if decoder == "opencv":
            import cv2  # noqa: F401

            return _decode_opencv
    except ImportError as error:
        raise ValueError(
            f"decoder: {decoder!r} is not installed (pip install {_INSTALL[decoder]})"
        ) from error
    return _decode_pillow


def _decode_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _rgb(image)
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        raise CorruptImage(f"Pillow: {_reason(error)}") from error


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels uint8 [H, W, 3]; ``convert`` would clip grey of more than 8 bits to white.

    Raises:
        ValueError: grey whose range is not known.
    """
    # A PNG or PPM of 16 bits has mode I in some versions of Pillow.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        kind = "32-bit whole numbers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"pixels are {kind} of unknown range; allowed: 8 or 16 bits a channel")
    return np.asarray(image.convert("RGB"))


def _reason(error: Exception) -> str:
    """What Pillow says, but for the object it could not identify."""
    return "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)


def _decode_simplejpeg(data: bytes) -> np.ndarray:
    import simplejpeg

    if not simplejpeg.is_jpeg(data):
        raise CorruptImage("simplejpeg: not a JPEG (other formats: decoder pillow or opencv)")
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise CorruptImage(f"simplejpeg: {error}") from error


def _decode_opencv(data: bytes) -> np.ndarray:
    import cv2

    # OpenCV fills a truncated JPEG with grey and does not say so: look for the end marker.
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[2:]:
        raise CorruptImage("OpenCV: JPEG without an end marker")
    try:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise CorruptImage(f"OpenCV: {error}") from error
    if pixels is None:
        raise CorruptImage("OpenCV: cannot decode these bytes")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
