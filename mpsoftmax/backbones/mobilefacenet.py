"""MobileFaceNet in the structure and parameter names of arcface_torch (its "mbf").

Chen et al. 2018, "MobileFaceNets", with arcface_torch's doubled widths (``scale`` 2). Published
state dicts of insightface's ``recognition/arcface_torch/backbones/mobilefacenet.py`` load as they
are at 112 x 112.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from mpsoftmax.backbones.execution import full_precision, run_block
from mpsoftmax.backbones.options import image_size_multiple_of, whole_number, whole_numbers

_LAST_WIDTH = 512


class _Layers(nn.Module):
    """A sequence under the name ``layers``: the nesting that the public parameter names have."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Shortcut(_Layers):
    """The same, added to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _linear_conv(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> _Layers:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return _Layers(conv, nn.BatchNorm2d(out_channels))


def _conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> _Layers:
    """Convolution - BN - PReLU; keeps the size at stride 1."""
    linear = _linear_conv(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
    )
    return _Layers(*linear.layers, nn.PReLU(out_channels))


def _bottleneck(in_channels: int, inner: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Widen (1x1), filter each channel at stride 2 (3x3), narrow without activation (1x1)."""
    return (
        _conv(in_channels, inner, 1),
        _conv(inner, inner, 3, stride=2, groups=inner),
        _linear_conv(inner, out_channels, 1),
    )


def _residual_row(channels: int, num_blocks: int, inner: int) -> _Layers:
    def block() -> _Shortcut:
        return _Shortcut(
            _conv(channels, inner, 1),
            _conv(inner, inner, 3, groups=inner),
            _linear_conv(inner, channels, 1),
        )

    return _Layers(*(block() for _ in range(num_blocks)))


class MobileFaceNet(nn.Module):
    """Images float [b, 3, H, W] in [-1, 1] -> raw embeddings float [b, embedding_dim].

    Args:
        embedding_dim: width of the embedding.
        image_size: (H, W) in pixels, multiples of 16; the global depthwise convolution covers the
            whole last map, so its kernel is (H/16, W/16).
        activation_checkpointing: recompute each block in backward instead of keeping it.
        blocks: residual blocks in each of the four stages; a single one in the first stage is a
            plain depthwise convolution.
        scale: factor on the paper's widths; (2, 8, 12, 4) and 4 make arcface_torch's "mbf_large".

    Raises:
        ValueError: an option or a size outside what is said here.
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        image_size: tuple[int, int],
        activation_checkpointing: bool = False,
        blocks: Sequence[int] = (1, 4, 6, 2),
        scale: int = 2,
    ) -> None:
        super().__init__()
        last_map = image_size_multiple_of(16, image_size, "MobileFaceNet")
        first, second, third, fourth = whole_numbers("blocks", blocks, 4)
        narrow = 64 * whole_number("scale", scale)
        wide = 2 * narrow
        self.activation_checkpointing = activation_checkpointing
        self.layers = nn.ModuleList(
            [
                _conv(3, narrow, 3, stride=2),
                _conv(narrow, narrow, 3, groups=64)
                if first == 1
                else _residual_row(narrow, first, 128),
                _Layers(*_bottleneck(narrow, 128, narrow)),
                _residual_row(narrow, second, 128),
                _Layers(*_bottleneck(narrow, 256, wide)),
                _residual_row(wide, third, 256),
                _Layers(*_bottleneck(wide, 512, wide)),
                _residual_row(wide, fourth, 256),
            ]
        )
        self.conv_sep = _conv(wide, _LAST_WIDTH, 1)
        self.features = _Layers(
            _linear_conv(_LAST_WIDTH, _LAST_WIDTH, last_map, groups=_LAST_WIDTH),
            nn.Flatten(),
            nn.Linear(_LAST_WIDTH, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return raw embeddings; see the class for shapes."""
        x = images
        for part in self.layers:
            is_row = isinstance(part, _Layers) and isinstance(part.layers[0], _Shortcut)
            for block in cast(nn.Sequential, part.layers) if is_row else (part,):
                x = run_block(block, x, checkpointing=self.activation_checkpointing)
        with full_precision(x):
            dtype = next(self.conv_sep.parameters()).dtype
            return self.features(self.conv_sep(x.to(dtype)))
