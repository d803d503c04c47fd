"""The first batch of a training as a picture, made by the very loader of the training."""

from PIL.Image import Image

from mpsoftmax.config import Config
from mpsoftmax.data.contact_sheet import contact_sheet
from mpsoftmax.data.loader import Loader
from mpsoftmax.train.build import build_augment
from mpsoftmax.train.datasets import build_order, open_training_images, sizes_of

MOST = 64


def first_batch(config: Config) -> tuple[Image, int, tuple[int, ...]]:
    """(Picture of the first images, number of images, number of classes of each dataset).

    Raises:
        ValueError: the data cannot be opened or an image cannot be decoded.
    """
    data = config.data
    images = open_training_images(config)
    loader = Loader(
        images,
        build_order(config, images),
        size=data.image_size,
        decoder=data.decoder,
        crop=data.crop,
        augment=build_augment(config),
        seed=config.train.seed,
        max_corrupt=data.max_corrupt,
    )
    batch = next(loader.stream([(0, min(MOST, config.train.batch_size))]))
    names = images.class_names
    labels: list[int] = batch.labels.tolist()
    captions = ["ignored" if label < 0 else names[label] for label in labels]
    return contact_sheet(batch.images.numpy(), captions), len(images), sizes_of(images)
