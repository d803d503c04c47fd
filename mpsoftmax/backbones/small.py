"""A narrow residual net for small inputs (32 x 32 to 64 x 64), trainable on a CPU.

Basic blocks after He et al., 2016 (arXiv 1512.03385), with IResNet's head (flatten, dropout, linear,
batch norm). On a CPU they run about twice as fast as IResNet's own blocks, whose first convolution keeps
the full resolution; and ReLU is a quarter faster than PReLU, whose backward pass is slow in PyTorch.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from mpsoftmax.backbones.execution import full_precision, run_block
from mpsoftmax.backbones.iresnet import Norm, batch_norm, embedding_norm
from mpsoftmax.backbones.options import image_size_multiple_of, rate, whole_numbers

_NUM_GROUPS = 8


def group_norm(num_channels: int) -> nn.Module:
    """Group norm over [b, num_channels, h, w]: no statistics shared between samples."""
    return nn.GroupNorm(_NUM_GROUPS, num_channels)


_NORMS: dict[str, Norm] = {"batch": batch_norm, "group": group_norm}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [b, in, h, w] -> [b, out, h / stride, w / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(f(x) + shortcut(x))."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


def make_stage(
    in_channels: int, out_channels: int, num_blocks: int, stride: int, norm: Norm
) -> nn.Sequential:
    """A row of blocks; the first one changes width and resolution."""
    first = ResidualBlock(in_channels, out_channels, stride, norm)
    rest = [ResidualBlock(out_channels, out_channels, 1, norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


class Small(nn.Module):
    """Images float [b, 3, H, W] in [-1, 1] -> raw embeddings float [b, embedding_dim].

    Args:
        embedding_dim: width of the embedding.
        image_size: (H, W) in pixels, multiples of the product of ``strides``.
        activation_checkpointing: recompute each block in backward instead of keeping it.
        widths: channels of each stage; the first is also the width of the 3x3 stem.
        depths: blocks in each stage.
        strides: 1 or 2 for each stage; None is 2 for every stage.
        dropout: rate in front of the fully connected layer.
        norm: "batch", or "group" (8 groups, and no norm behind the embedding): with "group" a
            sample's embedding never depends on the other samples of its batch.

    Raises:
        ValueError: an option or a size outside what is said here.
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        image_size: tuple[int, int],
        activation_checkpointing: bool = False,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (1, 1, 1, 1),
        strides: Sequence[int] | None = None,
        dropout: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        widths = whole_numbers("widths", widths)
        depths = whole_numbers("depths (as many as widths)", depths, len(widths))
        strides = _check_strides((2,) * len(widths) if strides is None else strides, len(widths))
        make_norm = _check_norm(norm, widths)
        height, width = image_size_multiple_of(prod(strides), image_size, "small")
        self.activation_checkpointing = activation_checkpointing
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = make_norm(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.stages = nn.ModuleList(
            make_stage(*stage, make_norm)
            for stage in zip((widths[0], *widths[:-1]), widths, depths, strides, strict=True)
        )
        self.bn2 = make_norm(widths[-1])
        self.dropout = nn.Dropout(rate("dropout", dropout))
        self.fc = nn.Linear(widths[-1] * height * width, embedding_dim)
        self.features = embedding_norm(embedding_dim) if norm == "batch" else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return raw embeddings; see the class for shapes."""
        x = self.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            for block in stage:
                x = run_block(block, x, checkpointing=self.activation_checkpointing)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with full_precision(x):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


def _check_strides(value: object, num_stages: int) -> tuple[int, ...]:
    strides = whole_numbers("strides (as many as widths)", value, num_stages)
    if not set(strides) <= {1, 2}:
        raise ValueError(f"strides must be 1 or 2, got {list(strides)}")
    return strides


def _check_norm(name: object, widths: tuple[int, ...]) -> Norm:
    if name not in _NORMS:
        raise ValueError(f"norm must be one of {', '.join(_NORMS)}, got {name!r}")
    if name == "group" and any(width % _NUM_GROUPS for width in widths):
        raise ValueError(
            f"widths must be multiples of {_NUM_GROUPS} with norm 'group', got {list(widths)}"
        )
    return _NORMS[str(name)]
