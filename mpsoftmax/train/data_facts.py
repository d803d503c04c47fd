"""What the defaults of a training follow from: the data, as found, and the machine."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from mpsoftmax.config import Config, from_tree
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.parquet import ParquetImages
from mpsoftmax.data.union import Union
from mpsoftmax.train.datasets import open_training_images

SAMPLE = 200
"""Images whose sizes are looked at."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The data and the machine.

    Attributes:
        name: What the run may be called.
        source: ``glyphs``, ``synthetic`` or ``files``.
        num_datasets: Sets in data.train.
        class_sizes: int64 [classes], images of each class.
        image_size: Median height and width in pixels of a sample.
        row_groups: Whether images can only be read in groups (Parquet).
        gpu: Whether there is one.
        cores: Processor cores of this machine.
        world: Ranks.
        local_world: Ranks on this machine, who share its cores.
    """

    name: str
    source: str
    num_datasets: int
    class_sizes: np.ndarray
    image_size: tuple[int, int]
    row_groups: bool
    gpu: bool
    cores: int
    world: int
    local_world: int


def look(tree: Mapping[str, Any], world: int) -> Facts:
    """Open the data of a configuration and look at it.

    Args:
        tree: What the user gave.
        world: Ranks.

    Raises:
        ValueError: the data cannot be opened, or what was given is not valid.
    """
    config = from_tree(with_length(tree))
    images = open_training_images(config)
    labels = images.labels
    return Facts(
        name=run_name(config),
        source=_source(config),
        num_datasets=len(config.data.datasets),
        class_sizes=np.bincount(labels[labels >= 0], minlength=len(images.class_names)),
        image_size=median_size(images),
        row_groups=any(isinstance(one, ParquetImages) for one in sets_beneath(images)),
        gpu=torch.cuda.is_available(),
        cores=len(os.sched_getaffinity(0)),
        world=world,
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", world)),
    )


def run_name(config: Config) -> str:
    """The last part of what data.train names, as a folder's name."""
    last = config.data.datasets[0].path.partition("@")[0].rstrip("/")
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in PurePath(last).stem).strip("-.")
    return name or "data"


def with_length(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a tree whose training has some length, so that its data can be looked at."""
    train = dict(tree.get("train") or {})
    if train.get("steps") is None and train.get("epochs") is None:
        train["steps"] = 1
    return {**tree, "train": train}


def _source(config: Config) -> str:
    paths = {dataset.path for dataset in config.data.datasets}
    return next((name for name in ("glyphs", "synthetic") if name in paths), "files")


def sets_beneath(images: ImageSet) -> list[ImageSet]:
    """The sets as they are stored, beneath unions and views."""
    if isinstance(images, Union):
        return [below for part in images.parts for below in sets_beneath(part)]
    inner = getattr(images, "images", None)
    return sets_beneath(inner) if isinstance(inner, ImageSet) else [images]


def median_size(images: ImageSet) -> tuple[int, int]:
    """Median height and width in pixels of up to two hundred images, evenly spread, that are readable.

    Raises:
        ValueError: none of them can be read.
    """
    places = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(np.int64))
    sizes = [size for size in (_size(images.image(int(k))) for k in places) if size is not None]
    if not sizes:
        raise ValueError(
            f"data.train: none of {len(places)} images looked at is an image, such as {images.name(0)}"
        )
    height, width = np.median(np.array(sizes), axis=0).astype(int).tolist()
    return height, width


def _size(image: bytes | np.ndarray) -> tuple[int, int] | None:
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    try:
        with Image.open(io.BytesIO(image)) as header:
            return header.size[1], header.size[0]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
