"""IResNet: the residual net of ArcFace, in the structure and parameter names of arcface_torch.

Published state dicts of insightface's ``recognition/arcface_torch/backbones/iresnet.py``
(iresnet18/34/50/100/200) load as they are at 112 x 112. Block: BN - 3x3 - BN - PReLU - 3x3 - BN
plus identity; no pooling, the last map is flattened into one fully connected layer (ArcFace,
Deng et al. 2019, section 3.1: output setting E of the improved residual unit).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpsoftmax.backbones.execution import full_precision, run_block
from mpsoftmax.backbones.options import image_size_multiple_of, rate

DEPTHS = {  # blocks in each of the four stages
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
_WIDTHS = (64, 128, 256, 512)

Norm = Callable[[int], nn.Module]


def batch_norm(num_channels: int) -> nn.Module:
    """Batch norm over [b, num_channels, h, w]."""
    return nn.BatchNorm2d(num_channels, eps=1e-5)


class BasicBlock(nn.Module):
    """[b, in_channels, h, w] -> [b, out_channels, h/stride, w/stride]; stride in the second conv.

    ``norm`` makes the normalisation layers; their names stay bn1, bn2, bn3 whatever it makes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.bn1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = norm(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; see the class for shapes."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + identity


def make_stage(
    in_channels: int, out_channels: int, num_blocks: int, stride: int, norm: Norm
) -> nn.Sequential:
    """A row of blocks; the first one changes width and resolution."""
    first = BasicBlock(in_channels, out_channels, stride, norm)
    rest = [BasicBlock(out_channels, out_channels, 1, norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


def embedding_norm(embedding_dim: int) -> nn.BatchNorm1d:
    """The batch norm behind the embedding: its scale stays 1, only its bias is learned."""
    norm = nn.BatchNorm1d(embedding_dim, eps=1e-5)
    norm.weight.requires_grad_(False)
    return norm


def initialise_convolutions(model: nn.Module) -> None:
    """Convolutions from N(0, 0.1^2), as arcface_torch; a norm follows each, so scale is free."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)


class IResNet(nn.Module):
    """Images float [b, 3, H, W] in [-1, 1] -> raw embeddings float [b, embedding_dim].

    Args:
        depths: blocks in each of the four stages.
        embedding_dim: width of the embedding.
        image_size: (H, W) in pixels, multiples of 16, rectangular allowed.
        activation_checkpointing: recompute each block in backward instead of keeping it.
        dropout: rate in front of the fully connected layer.

    Raises:
        ValueError: a size that is no multiple of 16; a rate outside [0, 1).
    """

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        embedding_dim: int,
        image_size: tuple[int, int],
        activation_checkpointing: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = image_size_multiple_of(16, image_size, "IResNet")
        self.activation_checkpointing = activation_checkpointing
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = batch_norm(_WIDTHS[0])
        self.prelu = nn.PReLU(_WIDTHS[0])
        self.layer1 = make_stage(_WIDTHS[0], _WIDTHS[0], depths[0], 2, batch_norm)
        self.layer2 = make_stage(_WIDTHS[0], _WIDTHS[1], depths[1], 2, batch_norm)
        self.layer3 = make_stage(_WIDTHS[1], _WIDTHS[2], depths[2], 2, batch_norm)
        self.layer4 = make_stage(_WIDTHS[2], _WIDTHS[3], depths[3], 2, batch_norm)
        self.bn2 = batch_norm(_WIDTHS[3])
        self.dropout = nn.Dropout(rate("dropout", dropout))
        self.fc = nn.Linear(_WIDTHS[3] * height * width, embedding_dim)
        self.features = embedding_norm(embedding_dim)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return raw embeddings; see the class for shapes."""
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = run_block(block, x, checkpointing=self.activation_checkpointing)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with full_precision(x):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))
