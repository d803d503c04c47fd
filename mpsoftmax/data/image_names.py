"""What an image is called in files about a set: by its path below the folder or in the tar."""

from mpsoftmax.data.folder import FolderImages, TarImages
from mpsoftmax.data.ijb import AlignedImages
from mpsoftmax.data.image_set import ImageSet, Subset
from mpsoftmax.data.view import Relabelled


def name_of(images: ImageSet, index: int) -> str:
    """Path of an image below its folder or in its tar; where there is none, what messages call it.

    `mpsoftmax embed` writes it and `mpsoftmax evaluate` looks for it, so that a set may be moved.
    """
    if isinstance(images, Subset):
        return name_of(images.images, int(images.indices[index]))
    if isinstance(images, AlignedImages | Relabelled):
        return name_of(images.images, index)
    return (
        images.paths[index] if isinstance(images, FolderImages | TarImages) else images.name(index)
    )


def names_of(images: ImageSet) -> list[str]:
    """Of all images of a set, in order."""
    return [name_of(images, index) for index in range(len(images))]
