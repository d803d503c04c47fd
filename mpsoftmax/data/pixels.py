"""What a backbone is fed: pixels as floats in [-1, 1]."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 [...] in 0..255 -> float32 [...] in [-1, 1]: (x - 127.5) / 127.5."""
    return images.to(torch.float32).sub_(127.5).div_(127.5)
