"""The training images of a configuration and the order in which they are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpsoftmax.config import Config, DatasetConfig, GlyphsConfig
from mpsoftmax.config.checks import parse_part
from mpsoftmax.data.grouped_order import GroupedOrder, group_starts
from mpsoftmax.data.held_back import hold_back
from mpsoftmax.data.image_set import ImageSet, Subset, keep_classes, keep_part
from mpsoftmax.data.mixture import MixtureOrder
from mpsoftmax.data.open import open_images, refuse_own
from mpsoftmax.data.order import ClassesOrder, ImagesOrder, Order, PKOrder
from mpsoftmax.data.parquet import ParquetImages
from mpsoftmax.data.union import Union, UnionNames
from mpsoftmax.data.view import Relabelled


def glyph_options(config: Config, split: str) -> dict[str, Any]:
    """Arguments of open_glyphs for one split."""
    glyphs: GlyphsConfig = config.data.glyphs
    return {
        "split": split,
        "fonts": glyphs.fonts,
        "use_system_fonts": glyphs.system_fonts,
        "use_matplotlib_fonts": glyphs.matplotlib_fonts,
        "code_points": None if glyphs.code_points == "all" else glyphs.code_points,
        "min_fonts": glyphs.min_fonts,
        "seed": config.data.seed,
    }


def reader_options(config: Config, dataset: DatasetConfig, where: str) -> Mapping[str, Any]:
    """What the reader of one dataset is told.

    Raises:
        ValueError: `under` or `reader` for a set that is not read.
    """
    data = config.data
    for key, value in (("under", dataset.under), ("reader", dataset.reader)):
        if dataset.path in ("glyphs", "synthetic") and value:
            raise ValueError(f"{where}{key}: {value!r}; allowed only where data.train is a path")
    if dataset.path == "glyphs":
        return glyph_options(config, "train")
    if dataset.path == "synthetic":
        return {
            "num_classes": data.synthetic.num_classes,
            "images_per_class": data.synthetic.images_per_class,
            "size": data.image_size,
            "seed": data.seed,
        }
    refuse_own(dataset.reader, f"{where}reader")
    return {**dataset.reader, **({"under": dataset.under} if dataset.under else {})}


def open_dataset(config: Config, dataset: DatasetConfig, where: str) -> ImageSet:
    """One dataset, without the classes that have too few images.

    Raises:
        ValueError: it cannot be opened or holds no images; names the config path `where`.
    """
    data = config.data
    least = dataset.min_images_per_class or data.min_images_per_class
    options = reader_options(config, dataset, "data." if where == "data.train" else f"{where}.")
    try:
        images = open_images(dataset.path, **options)
        if len(images) == 0:
            raise ValueError(f"{dataset.path} holds no images")
        stored = images
        while isinstance(stored, Subset | Relabelled):
            stored = stored.images
        if isinstance(stored, ParquetImages) and data.order == "grouped":
            stored.cache_groups = max(stored.cache_groups, data.order_window)
        if dataset.part:
            images = keep_part(images, *parse_part("part", dataset.part))
        return keep_classes(images, least)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def open_training_images(config: Config) -> ImageSet:
    """data.train: one set, or a `Union` of those listed.

    Raises:
        ValueError: as `open_dataset`; or there is nothing to tell apart.
    """
    data = config.data
    datasets = data.datasets
    listed = not isinstance(data.train, str)
    parts = [
        open_dataset(config, dataset, f"data.train[{i}]" if listed else "data.train")
        for i, dataset in enumerate(datasets)
    ]
    images = parts[0]
    if data.held_back:
        images = _held_back(config, images)[0]
    if len(parts) > 1:
        images = Union(parts, [str(dataset.name) for dataset in datasets])
    if len(images.class_names) < 2:
        found = f"1 class ({images.class_names[0]!r})" if len(images.class_names) else "no class"
        raise ValueError(f"data.train: {found}; allowed: at least 2")
    return images


def open_held_back(config: Config) -> ImageSet:
    """The classes of data.train that are not trained on: data.held_back of them.

    Raises:
        ValueError: as `open_dataset`, or the set has too few such classes.
    """
    return _held_back(config, open_dataset(config, config.data.datasets[0], "data.train"))[1]


def _held_back(config: Config, images: ImageSet) -> tuple[ImageSet, ImageSet]:
    try:
        return hold_back(images, config.data.held_back, config.data.seed)
    except ValueError as error:
        raise ValueError(f"data.held_back: {error}") from error


def sizes_of(images: ImageSet) -> tuple[int, ...]:
    """Number of classes of each dataset."""
    return images.sizes if isinstance(images, Union) else (len(images.class_names),)


def names_within(images: ImageSet) -> Sequence[str]:
    """Class names as each dataset has them."""
    if not isinstance(images, Union):
        return images.class_names
    return UnionNames(images.parts, None)


def build_order(config: Config, images: ImageSet) -> Order:
    """data.order over the images; of several datasets, each in its own order, mixed by their weights."""
    seed, data = config.train.seed, config.data
    if not isinstance(images, Union):
        return order_within(config, images, seed)
    orders = [
        order_within(config, part, dataset_seed(seed, b)) for b, part in enumerate(images.parts)
    ]
    given = [dataset.weight for dataset in data.datasets]
    weights = [
        len(part) if weight is None else weight
        for part, weight in zip(images.parts, given, strict=True)
    ]
    group = data.images_per_class if data.order == "pk" else 1
    return MixtureOrder(orders, images.starts[:-1].tolist(), weights, group)


def order_within(config: Config, images: ImageSet, seed: int) -> Order:
    """data.order of one dataset.

    Raises:
        ValueError: grouped, and the set has no groups.
    """
    labels = images.labels
    if config.data.order == "grouped":
        starts = group_starts(images)
        if starts is None:
            raise ValueError(
                "data.order: grouped; allowed where images are read in groups: .parquet, .arrow, WebDataset "
                "shards; others are read one by one, in any order"
            )
        return GroupedOrder(starts, seed, config.data.order_window)
    if config.data.order == "classes":
        return ClassesOrder(labels, seed)
    if config.data.order == "pk":
        return PKOrder(labels, seed, config.data.images_per_class)
    return ImagesOrder(labels, seed)


def dataset_seed(seed: int, number: int) -> int:
    """A key of its own for each dataset, so that two of one size are not walked in step."""
    words = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return int(words[0])
