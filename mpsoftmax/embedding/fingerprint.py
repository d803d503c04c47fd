"""What decides the embeddings of a set, so that a resumed job cannot mix two."""

import hashlib
from typing import Any

import numpy as np
from torch import nn

from mpsoftmax.config import Config
from mpsoftmax.data.image_set import ImageSet

SAMPLED_IMAGES = 64


def digest_of_net(net: nn.Module, extra: bytes = b"") -> str:
    """Of all parameters and buffers by name, and of `extra`: 16 hexadecimal digits."""
    digest = hashlib.sha256(extra)
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:16]


def digest_of_images(images: ImageSet) -> str:
    """Of all names, labels and class names, and of the bytes of 64 images spread over the set."""
    digest = hashlib.sha256(f"{len(images)}".encode())
    digest.update(np.ascontiguousarray(images.labels, dtype=np.int64).tobytes())
    for name in images.class_names:
        digest.update(str(name).encode("utf-8", "surrogateescape") + b"\0")
    for index in range(len(images)):
        digest.update(images.name(index).encode("utf-8", "surrogateescape") + b"\0")
    chosen = np.linspace(0, len(images) - 1, min(SAMPLED_IMAGES, len(images))).astype(int)
    for index in np.unique(chosen).tolist():
        image = images.image(index)
        digest.update(image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()[:16]


def pixel_settings(config: Config) -> dict[str, Any]:
    """What of the configuration decides the pixels and the arithmetic."""
    data = config.data
    return {
        "image_size": list(data.image_size),
        "crop": data.crop,
        "decoder": data.decoder,
        "precision": config.train.precision,
    }
