"""Small pictures of images for pages that carry them along."""

import base64
import io

from PIL import Image

from mpsoftmax.data.decode import decode
from mpsoftmax.data.image_set import ImageSet

LONGEST_SIDE = 112


def thumbnail(
    images: ImageSet,
    index: int,
    *,
    size: tuple[int, int],
    decoder: str = "pillow",
    crop: float = 1.0,
) -> str:
    """One image as a data URI: cut and resized as a model sees it, at most LONGEST_SIDE pixels a side.

    PNG or JPEG (quality 85), whichever is smaller: drawings are smaller as PNG, photographs as JPEG.

    Args:
        images: Where it comes from.
        index: Which one.
        size: (height, width) in pixels that the model takes.
        decoder: one of ``mpsoftmax.data.decode.DECODERS``.
        crop: central share of each side that is kept before resizing, in (0, 1].

    Raises:
        ValueError: the image cannot be decoded.
    """
    factor = min(1.0, LONGEST_SIDE / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    picture = Image.fromarray(decode(images.image(index), (height, width), decoder, crop))
    written: dict[str, bytes] = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        written[kind] = file.getvalue()
    kind = min(written, key=lambda name: len(written[name]))
    return f"data:image/{kind};base64,{base64.b64encode(written[kind]).decode('ascii')}"
