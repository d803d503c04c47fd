"""``build_backbone``: a backbone by name."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from mpsoftmax.backbones import doors, iresnet, vit
from mpsoftmax.backbones.mobilefacenet import MobileFaceNet
from mpsoftmax.backbones.options import whole_number, whole_numbers
from mpsoftmax.backbones.small import Small


@dataclass(frozen=True)
class _Net:
    """What a name stands for: the class, its settings under that name, the options it takes."""

    make: Callable[..., nn.Module]
    options: tuple[str, ...]
    settings: Mapping[str, object] = field(default_factory=dict)


_NETS: dict[str, _Net] = {
    **{
        name: _Net(iresnet.IResNet, ("dropout",), {"depths": depths})
        for name, depths in iresnet.DEPTHS.items()
    },
    "mobilefacenet": _Net(MobileFaceNet, ("blocks", "scale")),
    **{
        name: _Net(vit.VisionTransformer, ("patch_size", "drop_path", "mask_ratio"), size)
        for name, size in vit.SIZES.items()
    },
    "small": _Net(Small, ("widths", "depths", "strides", "dropout", "norm")),
}
_DOORS = {"timm": doors.open_timm, "transformers": doors.open_transformers}


def backbone_names() -> tuple[str, ...]:
    """The names that need no other package."""
    return tuple(_NETS)


def build_backbone(
    name: str,
    *,
    embedding_dim: int,
    image_size: tuple[int, int],
    activation_checkpointing: bool = False,
    options: Mapping[str, object] | None = None,
) -> nn.Module:
    """Build a backbone, freshly initialised from torch's default generator.

    The module maps images float [b, 3, H, W] in [-1, 1] to raw (not normalised) embeddings float
    [b, embedding_dim].

    Args:
        name: iresnet18/34/50/100/200, mobilefacenet, vit_t/s/b/l, small; "timm:NAME" or
            "transformers:NAME" where these packages are installed; or "package.module:callable",
            called as ``callable(embedding_dim=..., image_size=..., **options)``, which imports and
            runs that module: pass such a name only from a source you trust.
        embedding_dim: width of the embedding.
        image_size: (H, W) in pixels.
        activation_checkpointing: recompute blocks in backward instead of keeping their activations;
            same numbers, less memory, more time.
        options: settings of that net; see the net's class.

    Raises:
        ValueError: unknown name or option (with what there is), a value or an image size the net
            cannot take, a package not installed.
    """
    whole_number("embedding_dim", embedding_dim)
    height, width = whole_numbers("image_size", image_size, 2)
    arguments = {
        "embedding_dim": embedding_dim,
        "image_size": (height, width),
        "activation_checkpointing": activation_checkpointing,
    }
    chosen = dict(options or {})
    door, colon, inner_name = name.partition(":")
    if not colon:
        return _build_named(name, chosen, arguments)
    if door in _DOORS:
        return _DOORS[door](inner_name, options=chosen, **arguments)
    return doors.open_import_path(name, options=chosen, **arguments)


def _build_named(name: str, options: dict[str, object], arguments: dict[str, object]) -> nn.Module:
    net = _NETS.get(name)
    if net is None:
        raise ValueError(
            f"unknown backbone {name!r}{_did_you_mean(name, _NETS)}; there are {', '.join(_NETS)}, "
            "timm:NAME, transformers:NAME and package.module:callable"
        )
    for option in options:
        if option not in net.options:
            raise ValueError(
                f"backbone {name!r} has no option {option!r}{_did_you_mean(option, net.options)}; "
                f"it takes {', '.join(net.options)}"
            )
    try:
        return net.make(**{**net.settings, **options}, **arguments)
    except ValueError as error:
        raise ValueError(f"backbone {name!r}: {error}") from None


def _did_you_mean(word: str, choices: Mapping[str, object] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""
