"""The small net of the quality benchmarks, and its augmentation."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

EMBED_BLOCK = 512


def build_net(widths: Sequence[int], halving: str, dim: int) -> nn.Sequential:
    """A net from float [b, 1, 32, 32] to raw embeddings float [b, dim]: 3x3 convolutions with batch norm.

    Args:
        widths: Channels of each convolution.
        halving: One letter a convolution: "s" strides, which is fast; "p" is followed by max pooling, which
            is better and dearer.
        dim: Width of the embedding.
    """
    layers: list[nn.Module] = []
    for before, after, how in zip((1, *widths), widths, halving, strict=False):
        stride = 2 if how == "s" else 1
        convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        if how == "p":
            layers.append(nn.MaxPool2d(2))
    side = 32 // 2 ** len(widths)
    linear = nn.Linear(widths[-1] * side * side, dim, bias=False)
    net = nn.Sequential(*layers, nn.Flatten(), linear, nn.BatchNorm1d(dim))
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def prepared(pixels: Tensor) -> Tensor:
    """uint8 [b, 1, h, w] -> float in [0, 1]."""
    return pixels.to(torch.float32) / 255


def augmented(images: Tensor, options: Mapping[str, float], random: torch.Generator) -> Tensor:
    """Images float [b, 1, h, w], each turned, scaled, shifted and perhaps mirrored at random.

    Options: rotate (largest angle in degrees), scale and stretch (largest relative change), shift (pixels),
    flip (1: half of the images are mirrored).
    """
    num = images.shape[0]

    def uniform(largest: float) -> Tensor:
        return (torch.rand(num, generator=random) * 2 - 1) * largest

    angle = uniform(math.radians(options["rotate"]))
    size, stretch = 1 + uniform(options["scale"]), 1 + uniform(options["stretch"])
    mirror = torch.ones(num)
    if options["flip"]:
        mirror = torch.randint(0, 2, (num,), generator=random) * 2.0 - 1
    shift = 2 * options["shift"] / images.shape[-1]
    first = torch.stack([size * mirror * angle.cos(), -stretch * angle.sin(), uniform(shift)], 1)
    second = torch.stack([size * mirror * angle.sin(), stretch * angle.cos(), uniform(shift)], 1)
    theta = torch.stack([first, second], dim=1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def embedded(net: nn.Module, pixels: Tensor) -> Tensor:
    """Raw embeddings of images uint8 [n, 1, h, w], in evaluation mode; the net's mode is put back."""
    training = net.training
    net.eval()
    parts = [net(prepared(block)) for block in pixels.split(EMBED_BLOCK)]
    net.train(training)
    return torch.cat(parts)
