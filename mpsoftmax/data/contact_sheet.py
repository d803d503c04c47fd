"""Images of a batch side by side, with captions: what the network is going to see."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mpsoftmax.data.new_files import replaced

CELL = 112
"""Least width of an image in the picture, in pixels; smaller ones are enlarged by whole factors."""
_CAPTION, _GAP, _MOST = 14, 6, 64


def contact_sheet(images: np.ndarray, captions: Sequence[str]) -> Image.Image:
    """A picture of up to 64 images in rows.

    Args:
        images: uint8 [b, 3, H, W].
        captions: One an image; what is not ASCII is escaped, of what is long the end is shown.
    """
    images = images[:_MOST]
    _, _, height, width = images.shape
    factor = max(1, CELL // max(height, width))
    columns = max(1, math.ceil(math.sqrt(len(images))))
    wide, high = max(width * factor, CELL) + _GAP, height * factor + _CAPTION + _GAP
    rows = max(1, math.ceil(len(images) / columns))
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for k, pixels in enumerate(images):
        left, top = _GAP + k % columns * wide, _GAP + k // columns * high
        shown = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        sheet.paste(
            shown.resize((width * factor, height * factor), Image.Resampling.NEAREST), (left, top)
        )
        text = captions[k].encode("ascii", "backslashreplace").decode()
        draw.text((left, top + height * factor), text[-(wide // 6) :], fill="black")
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG beside its name and rename it; one that is there is replaced.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as part:
            picture.save(part, "PNG")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from error
