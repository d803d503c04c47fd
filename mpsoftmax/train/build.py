"""From the configuration to the parts of a run: augmentation, backbone, head.

The head's own parts are built in parts.py, images and their order in datasets.py, what runs the backbone and
its optimiser in engines/.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpsoftmax.backbones import build_backbone
from mpsoftmax.config import BackboneConfig, Config, HeadConfig
from mpsoftmax.data.order import share
from mpsoftmax.data.transforms import DEFAULTS, Transform
from mpsoftmax.data.transforms import build as build_transforms
from mpsoftmax.head.arguments import Description
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.weights import ClassCentres
from mpsoftmax.strict import suggestion
from mpsoftmax.train.duplicates import MERGE_KEY, read_names, with_known_pairs
from mpsoftmax.train.engines import describe_engine
from mpsoftmax.train.parts import head_parts
from mpsoftmax.train.schedule import check_schedule


def build_augment(config: Config) -> tuple[Transform, ...]:
    """data.augment: a named default or a list."""
    augment = config.data.augment
    if isinstance(augment, str):
        if augment not in DEFAULTS:
            raise ValueError(f"data.augment: {augment!r}{suggestion(augment, list(DEFAULTS))}")
        return DEFAULTS[augment]
    return build_transforms(list(augment))


def check_parts(config: Config) -> None:
    """Build every part that needs no data, so that its errors come before anything starts.

    Raises:
        ValueError: as the parts do, naming the config path.
    """
    build_augment(config)
    check_head(config)
    describe_engine(config)
    if config.train.steps is not None:
        check_schedule(config.train.schedule, config.train.steps)
    if (
        ":" not in config.backbone.name
    ):  # foreign constructors may read values, which meta tensors lack
        with torch.device("meta"):
            build_net(config)


def check_head(config: Config) -> None:
    """What the head's parts refuse, each and of each other; with room for any known pair of classes."""
    sizes = [2**40] * len(config.data.datasets)
    parts = head_parts(with_known_pairs(config, None), sizes)
    if config.train.clip_over == "joint" and not parts["weights"].learned:
        raise ValueError(
            f"train.clip_over: joint with head.weights={config.head.weights!r}; allowed with learned "
            "weights: class centres have no gradient"
        )
    if config.head.linking is not None and not parts["weights"].learned:
        raise ValueError(
            f"head.linking: given with head.weights={config.head.weights!r}; allowed with learned weights"
        )
    weights, section = parts["weights"], config.head.baskets
    if isinstance(weights, ClassCentres) and weights.rule == "exact" and not weights.refresh_every:
        raise ValueError(
            "head.weights.refresh_every: 0 with rule exact; allowed: at least 1: nothing else moves them"
        )
    if section is not None and section.merge is not None:
        read_names(section.merge, MERGE_KEY)
    try:
        Description.of(
            **parts,
            untouched=config.head.untouched,
            num_classes=sum(sizes),
            storage=config.head.storage,
        )
    except ValueError as error:
        raise ValueError(f"head: {error}") from error


def build_net(config: Config) -> nn.Module:
    """The backbone, freshly initialised from torch's default generator."""
    net: BackboneConfig = config.backbone
    try:
        return build_backbone(
            net.name,
            embedding_dim=net.embedding_dim,
            image_size=config.data.image_size,
            activation_checkpointing=net.activation_checkpointing,
            options=net.options,
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(
            message if message.startswith("backbone") else f"backbone: {message}"
        ) from error


def local_capacity(config: Config, world: int) -> int:
    """Largest number of samples a rank sees in one micro-batch.

    Raises:
        ValueError: some rank would get none.
    """
    train = config.train
    sizes = [share(train.batch_size, k, train.accumulation) for k in range(train.accumulation)]
    smallest = min(high - low for low, high in sizes)
    if smallest < world:
        raise ValueError(
            f"train.batch_size: {train.batch_size}; allowed with {world} ranks and train.accumulation="
            f"{train.accumulation}: at least {world * train.accumulation}, a sample a rank and micro-batch"
        )
    return -(-max(high - low for low, high in sizes) // world)


def build_head(
    config: Config, sizes: Sequence[int], world: int, device: torch.device
) -> ModelParallelSoftmax:
    """The sharded head for datasets of that many classes.

    Raises:
        ValueError: a part is unknown or refused, or parts do not go together; names the config path.
    """
    head, parts = config.head, head_parts(config, sizes)
    capacity = local_capacity(config, world)
    try:
        return ModelParallelSoftmax(
            config.backbone.embedding_dim,
            sum(sizes),
            **parts,
            untouched=head.untouched,
            compute_dtype=getattr(torch, head.compute_dtype),
            row_dtype=row_dtype(head),
            storage=head.storage,
            storage_dir=storage_folder(config),
            kernel=head.kernel,
            e_budget_bytes=head.e_budget_bytes,
            update_beside=head.update_beside,
            batch_capacity=capacity,
            init_std=head.init_std,
            device=device,
            seed=config.train.seed,
        )
    except ValueError as error:
        raise ValueError(f"head: {error}") from error


def row_dtype(head: HeadConfig) -> torch.dtype:
    """head.row_dtype; where it is not given, float32, or float64 where the products are."""
    usual = "float64" if head.compute_dtype == "float64" else "float32"
    return getattr(torch, head.row_dtype or usual)


def storage_folder(config: Config) -> str | None:
    """Where a mapped table's file lies; None where there is none."""
    if config.head.storage != "mapped":
        return config.head.storage_dir
    return config.head.storage_dir or str(Path(config.run.dir) / "rows")


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """`path: old -> new` of every leaf that differs between two config trees."""
    out = []
    for key in sorted({*old, *new}):
        a, b, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            out += changed_settings(a, b, f"{where}.")
        elif a != b:
            out.append(f"{where}: {a} -> {b}")
    return out
