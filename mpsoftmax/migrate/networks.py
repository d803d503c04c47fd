"""Networks of arcface_torch: by the name its configs use, and by the tensors of a state dict."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.backbones import build_backbone
from mpsoftmax.backbones.iresnet import DEPTHS

VIT = {"vit_t": (256, 12), "vit_s": (512, 12), "vit_b": (512, 24), "vit_l": (768, 24)}
"""(width, blocks) of the transformers."""
LARGE = {"blocks": [2, 8, 12, 4], "scale": 4}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name.replace("iresnet", "r"): (name, {}) for name in DEPTHS},
    "mbf": ("mobilefacenet", {}),
    "mbf_large": ("mobilefacenet", LARGE),
    "vit_t": ("vit_t", {"drop_path": 0.1, "mask_ratio": 0.1}),
    "vit_t_dp005_mask0": ("vit_t", {"drop_path": 0.05, "mask_ratio": 0.0}),
    "vit_s": ("vit_s", {"drop_path": 0.1, "mask_ratio": 0.1}),
    "vit_s_dp005_mask_0": ("vit_s", {"drop_path": 0.05, "mask_ratio": 0.0}),
    "vit_b": ("vit_b", {"drop_path": 0.1, "mask_ratio": 0.1}),
    "vit_b_dp005_mask_005": ("vit_b", {"drop_path": 0.05, "mask_ratio": 0.05}),
    "vit_l_dp005_mask_005": ("vit_l", {"drop_path": 0.05, "mask_ratio": 0.05}),
}
"""Their name -> (ours, its options)."""
SHOWN = 4


@dataclass(frozen=True)
class Detected:
    """The network that a state dict belongs to.

    Attributes:
        name: As backbone.name.
        embedding_dim: D.
        image_size: (H, W) in pixels that its last layer was made for.
        options: As backbone.options.
    """

    name: str
    embedding_dim: int
    image_size: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)

    def section(self) -> dict[str, Any]:
        """As the backbone section of a configuration."""
        named: dict[str, Any] = {"name": self.name, "embedding_dim": self.embedding_dim}
        return {**named, "options": self.options} if self.options else named

    def without_data(self) -> nn.Module:
        """The network on the meta device: names and shapes of its tensors."""
        with torch.device("meta"):
            return build_backbone(
                self.name,
                embedding_dim=self.embedding_dim,
                image_size=self.image_size,
                options=self.options,
            )


def detect(state: Mapping[str, Tensor]) -> Detected:
    """The network, from names and shapes.

    Raises:
        ValueError: it is none of IResNet, MobileFaceNet and the transformers; says what was looked for.
    """
    for names, tell in KNOWN_BY:
        if names <= state.keys():
            try:
                return tell(state)
            except (IndexError, KeyError, ZeroDivisionError) as error:
                told = f"backbone: {', '.join(sorted(names))} have other shapes than known: {error}"
                raise ValueError(told) from error
    some = ", ".join(list(state)[:SHOWN])
    raise ValueError(
        f"backbone: {len(state)} tensors ({some}, ...) of no network known here; allowed: parameter names "
        "of arcface_torch's IResNet (layer1.0.conv1.weight, fc.weight), MobileFaceNet "
        "(conv_sep.layers.0.weight) or transformer (patch_embed.proj.weight)"
    )


def iresnet(state: Mapping[str, Tensor]) -> Detected:
    """IResNet: blocks of each stage; the last map from the width of fc."""
    depths = tuple(highest(state, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    names: dict[tuple[int, ...], str] = {blocks: name for name, blocks in DEPTHS.items()}
    if depths not in names:
        known = ", ".join(f"{name} {blocks}" for name, blocks in DEPTHS.items())
        raise ValueError(f"backbone: an IResNet with stages of {depths} blocks; allowed: {known}")
    embedding_dim, width = state["fc.weight"].shape
    return Detected(names[depths], embedding_dim, square(width // 512, 16))


def mobilefacenet(state: Mapping[str, Tensor]) -> Detected:
    """MobileFaceNet: widths, blocks of each row, and the last map from its global convolution."""
    scale = state["layers.0.layers.0.weight"].shape[0] // 64
    plain = "layers.1.layers.0.weight" in state  # a single block is a convolution without shortcut
    rows = [highest(state, rf"layers\.{row}\.layers\.(\d+)\.") for row in (1, 3, 5, 7)]
    blocks = [1 if plain else rows[0], *rows[1:]]
    options = {} if (blocks, scale) == ([1, 4, 6, 2], 2) else {"blocks": blocks, "scale": scale}
    height, width = state["features.layers.0.layers.0.weight"].shape[-2:]
    embedding_dim = state["features.layers.2.weight"].shape[0]
    return Detected("mobilefacenet", embedding_dim, (16 * height, 16 * width), options)


def transformer(state: Mapping[str, Tensor]) -> Detected:
    """Transformer: width and number of blocks; the image is arcface_torch's 112 where patches allow it."""
    width, patch = (
        state["patch_embed.proj.weight"].shape[0],
        state["patch_embed.proj.weight"].shape[-1],
    )
    found = (width, highest(state, r"blocks\.(\d+)\."))
    names = {size: name for name, size in VIT.items()}
    if found not in names:
        known = ", ".join(f"{name} {size}" for name, size in VIT.items())
        raise ValueError(f"backbone: a transformer of (width, blocks) {found}; allowed: {known}")
    tokens = state["pos_embed"].shape[1]
    usual = (112 // patch) ** 2 == tokens
    size = (112, 112) if usual else square(tokens, patch)
    options = {} if patch == 9 else {"patch_size": patch}
    return Detected(names[found], state["feature.2.weight"].shape[0], size, options)


def highest(names: Iterable[str], pattern: str) -> int:
    """One past the largest number that names show in this place; 0 where none does.

    Raises:
        ValueError: it is larger than there are names: no network has blocks without a tensor.
    """
    every = list(names)
    found = [match[1] for name in every if (match := re.match(pattern, name))]
    if any(len(number) > 9 or int(number) >= len(every) for number in found):
        raise ValueError(f"backbone: block {max(found, key=len):.20} among {len(every)} tensors")
    return max((int(number) + 1 for number in found), default=0)


def square(places: int, unit: int) -> tuple[int, int]:
    """Height and width in pixels of a square map of so many places, each `unit` pixels wide."""
    side = math.isqrt(places)
    if side * side != places or not side:
        raise ValueError(
            f"backbone: its last map has {places} places, which is no square: height and width cannot be "
            "told; allowed: square images"
        )
    return side * unit, side * unit


def fitted(state: Mapping[str, Tensor], net: Detected) -> dict[str, Tensor]:
    """The state dict as our network takes it: every name, shape and dtype checked.

    Batch counts (num_batches_tracked), which old files lack, are 0.

    Raises:
        ValueError: names are missing or too many, or shapes differ; says which.
    """
    empty = net.without_data()
    wanted = empty.state_dict()
    counts = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state and name not in counts]
    strange = [name for name in state if name not in wanted]
    other = [
        f"{name} {tuple(state[name].shape)} (expected {tuple(value.shape)})"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    told = [said("missing", missing), said("not known", strange), said("of another shape", other)]
    if missing or strange or other:
        raise ValueError(
            f"backbone: looks like {net.name} with D = {net.embedding_dim} at {net.image_size}, but "
            + "; ".join(text for text in told if text)
        )
    zero = torch.zeros((), dtype=torch.int64)
    return {name: state.get(name, zero).to(value.dtype) for name, value in wanted.items()}


def said(what: str, names: list[str]) -> str:
    """How many and which."""
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} tensors {what}: {', '.join(names[:SHOWN])}{more}"


KNOWN_BY: tuple[tuple[set[str], Callable[[Mapping[str, Tensor]], Detected]], ...] = (
    ({"layer1.0.conv1.weight", "fc.weight"}, iresnet),
    ({"conv_sep.layers.0.weight", "features.layers.2.weight"}, mobilefacenet),
    ({"patch_embed.proj.weight", "feature.2.weight", "pos_embed"}, transformer),
)
"""Names that only one kind of network has together, and who tells the rest."""
