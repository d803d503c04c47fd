"""Passes over the training images that do not train: exact class means, and centres set from them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mpsoftmax.backbones.execution import evaluation_mode, lowered
from mpsoftmax.comm import Comm
from mpsoftmax.config import Config
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.loader import Batch, Loader
from mpsoftmax.data.order import share
from mpsoftmax.data.pixels import to_float
from mpsoftmax.head.centres import ClassMeans
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.weights import ClassCentres
from mpsoftmax.train.precision import autocast_dtype

PASS_BATCH = 64


class DataPass:
    """The way over all training images, in evaluation mode and without augmentation.

    Every rank embeds a contiguous share. Batches are filled up to one size, so an image goes through the
    same kernels wherever the shares are cut: the world size changes the order of sums and nothing else.

    Args:
        config: Image size, decoder, workers and precision.
        images: The training images.
        comm: The ranks.
        device: Where the backbone is.
    """

    def __init__(self, config: Config, images: ImageSet, comm: Comm, device: torch.device) -> None:
        data = config.data
        self._comm, self._device, self._num_images = comm, device, len(images)
        self._size = data.image_size
        self._autocast = autocast_dtype(config)
        self._loader = Loader(
            images,
            None,
            size=data.image_size,
            decoder=data.decoder,
            crop=data.crop,
            workers=data.workers,
            max_corrupt=data.max_corrupt,
        )

    def class_means(
        self, net: nn.Module, head: ModelParallelSoftmax, *, by_label: bool = False
    ) -> ClassMeans:
        """Means of all classes' features by the net as it is now; collective.

        The net's buffers become rank 0's, which is what a checkpoint holds. No random generator moves.

        Args:
            net: The bare backbone.
            head: Whose classes.
            by_label: Keep classes that were merged apart.
        """
        share_buffers(net, self._comm)
        means = head.class_means(by_label=by_label)
        with evaluation_mode(net), torch.no_grad():
            for batch in self._batches():
                means.add(self._features(net, batch.images), batch.labels.to(self._device))
        return means

    def features(self, net: nn.Module) -> tuple[Tensor, Tensor]:
        """Raw features float32 [m, D] and labels int64 [m] of this rank's share, by the net as it is.

        Nothing is asked of other ranks. An image that cannot be decoded has the label -1.
        """
        found: list[tuple[Tensor, Tensor]] = []
        with evaluation_mode(net), torch.no_grad():
            for batch in self._batches():
                found.append((self._features(net, batch.images), batch.labels.to(self._device)))
        return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])

    def _batches(self) -> Iterator[Batch]:
        """This rank's share; as many batches on every rank, the last ones perhaps empty."""
        start, stop = share(self._num_images, self._comm.rank, self._comm.world)
        largest = -(-self._num_images // self._comm.world)
        lows = [start + step for step in range(0, largest, PASS_BATCH)]
        return self._loader.stream((min(low, stop), min(low + PASS_BATCH, stop)) for low in lows)

    def _features(self, net: nn.Module, images: Tensor) -> Tensor:
        """Raw features float32 [b, D] of uint8 [b, 3, H, W]."""
        filled = images.new_zeros(PASS_BATCH, 3, *self._size)
        filled[: len(images)] = images
        with lowered(self._device, self._autocast):
            features = net(to_float(filled.to(self._device)))
        return features[: len(images)].float()


def share_buffers(net: nn.Module, comm: Comm) -> None:
    """Rank 0's running batch statistics on every rank; they differ until DDP's next forward."""
    for buffer in net.buffers():
        comm.broadcast(buffer)


def refresh_every(head: ModelParallelSoftmax) -> int | None:
    """Steps between passes that set the class centres exactly; None where nothing asks for them."""
    weights = head.weights
    return (weights.refresh_every or None) if isinstance(weights, ClassCentres) else None


def drift_of(head: ModelParallelSoftmax, means: ClassMeans, comm: Comm) -> dict[str, float]:
    """Angles between each class's row and its mean, over the classes with images; collective."""
    _, angles, _ = head.centre_angles(means)
    own = (float(angles.double().sum()), float(angles.amax()) if len(angles) else 0.0, len(angles))
    sums, largest, counts = zip(*comm.share(own), strict=True)
    return {
        "drift_mean_rad": sum(sums) / max(1, sum(counts)),
        "drift_max_rad": max(largest),
        "classes": sum(counts),
    }
