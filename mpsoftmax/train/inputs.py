"""What a run starts from, the same on every rank: device, images, number of steps."""

import hashlib
import math
from typing import Any

import numpy as np
import torch

from mpsoftmax.comm import AgreedError, Comm
from mpsoftmax.config import Config
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.union import Union
from mpsoftmax.train.datasets import open_training_images
from mpsoftmax.train.schedule import check_schedule


def total_steps(config: Config, num_images: int) -> int:
    """train.steps, or the steps that train.epochs come to.

    Raises:
        AgreedError: train.schedule does not fit into them.
    """
    train = config.train
    num_steps = train.steps
    if num_steps is None:
        assert train.epochs is not None
        num_steps = max(1, math.ceil(train.epochs * num_images / train.batch_size))
    try:
        check_schedule(train.schedule, num_steps)
    except ValueError as error:
        raise AgreedError(str(error)) from error
    return num_steps


def training_device() -> torch.device:
    """This process's GPU (set when the group was joined), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def open_in_turn(config: Config, comm: Comm) -> ImageSet:
    """The training images; rank 0 first, so that a cache is filled once and not by every rank.

    Raises:
        ValueError: they cannot be opened; on all ranks.
    """

    def open_on(first: bool) -> ImageSet | None:
        return open_training_images(config) if (comm.rank == 0) == first else None

    turns = [comm.together(lambda: open_on(True)), comm.together(lambda: open_on(False))]
    return next(images for images in turns if images is not None)


def describe_data(images: ImageSet, comm: Comm) -> dict[str, Any]:
    """Number of images and classes, and a digest of the labels in order; the same on all ranks.

    Of several datasets also each one's numbers: where its classes lie in the table follows from them.

    Raises:
        ValueError: the ranks see different data.
    """
    digest = hashlib.sha256(np.ascontiguousarray(images.labels).tobytes()).hexdigest()[:16]
    own: dict[str, Any] = {
        "num_images": len(images),
        "num_classes": len(images.class_names),
        "labels_sha256": digest,
    }
    if isinstance(images, Union):
        own["datasets"] = [
            {"name": name, "num_images": len(part), "num_classes": len(part.class_names)}
            for name, part in zip(images.names, images.parts, strict=True)
        ]
    everyone = comm.share(own)
    different = [rank for rank, seen in enumerate(everyone) if seen != everyone[0]]
    if different:
        raise AgreedError(
            f"data.train: rank 0 sees {everyone[0]}, rank {different[0]} sees {everyone[different[0]]}; "
            "allowed: the same images on all ranks (for glyphs: the same fonts, or system_fonts: false)"
        )
    return own
