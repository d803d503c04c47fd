"""Stand-in for your own dataset: random patterns, one a class, made on the fly."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mpsoftmax.data.pixels import to_float
from mpsoftmax.data.synthetic import Synthetic


class Patterns(Dataset[tuple[Tensor, int]]):
    """Images float32 [3, 32, 32] in [-1, 1] and their class."""

    def __init__(self, num_classes: int = 200, images_per_class: int = 8) -> None:
        self.images = Synthetic(
            num_classes=num_classes, images_per_class=images_per_class, size=(32, 32)
        )
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self.images.image(index).copy()).permute(2, 0, 1)
        return to_float(pixels[None])[0], int(self.images.labels[index])
