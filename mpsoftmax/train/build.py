"""From the configuration to the parts of a run: images, order, backbone, head, optimiser."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mpsoftmax.backbones import build_backbone
from mpsoftmax.config import BackboneConfig, Config, GlyphsConfig, OptimizerConfig
from mpsoftmax.data.image_set import ImageSet, keep_classes
from mpsoftmax.data.open import open_images
from mpsoftmax.data.order import ClassesOrder, ImagesOrder, Order, PKOrder, share
from mpsoftmax.data.transforms import DEFAULTS, Transform
from mpsoftmax.data.transforms import build as build_transforms
from mpsoftmax.head.candidates import All, Candidates, Uniform
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.objectives import OBJECTIVES, Objective
from mpsoftmax.head.row_optim import RowAdamW, RowRule, RowSGD
from mpsoftmax.strict import build, suggestion

CANDIDATES: dict[str, type] = {"all": All, "uniform": Uniform}
ROW_RULES: dict[str, type] = {"sgd": RowSGD, "adamw": RowAdamW}


def named_part(path: str, spec: str | Mapping[str, Any], choices: Mapping[str, type]) -> Any:
    """An instance from `name` or {kind: name, field: value, ...}, every field known and typed.

    Raises:
        ValueError: unknown kind or field, wrong type, or what the part itself refuses; names the path.
    """
    fields = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = str(fields.pop("kind", None))
    if kind not in choices:
        raise ValueError(f"{path}: kind {kind!r}{suggestion(kind, list(choices))}")
    try:
        return build(choices[kind], fields, path)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(path) else f"{path}: {message}") from error


def build_objective(config: Config) -> Objective:
    """head.objective."""
    return named_part("head.objective", config.head.objective, OBJECTIVES)


def build_candidates(config: Config) -> Candidates:
    """head.candidates."""
    return named_part("head.candidates", config.head.candidates, CANDIDATES)


def build_row_rule(config: Config) -> RowRule:
    """head.optimizer; its learning rate defaults to the backbone's."""
    spec = config.head.optimizer
    fields: dict[str, Any] = {"kind": spec} if isinstance(spec, str) else dict(spec)
    fields.setdefault("lr", config.train.optimizer.lr)
    return named_part("head.optimizer", fields, ROW_RULES)


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
    build_objective(config)
    build_candidates(config)
    build_row_rule(config)
    build_augment(config)
    if (
        ":" not in config.backbone.name
    ):  # foreign constructors may read values, which meta tensors lack
        with torch.device("meta"):
            build_net(config)


def glyph_options(config: Config, split: str) -> dict[str, Any]:
    """Arguments of open_glyphs for one split."""
    glyphs: GlyphsConfig = config.data.glyphs
    return {
        "split": split,
        "fonts": glyphs.fonts,
        "use_system_fonts": glyphs.system_fonts,
        "use_matplotlib_fonts": glyphs.matplotlib_fonts,
        "code_points": None if glyphs.code_points == "all" else glyphs.code_points,
        "min_fonts": glyphs.min_fonts,
        "seed": config.data.seed,
    }


def open_training_images(config: Config) -> ImageSet:
    """data.train, without the classes that have too few images."""
    data = config.data
    options: dict[str, Any] = {}
    if data.train == "glyphs":
        options = glyph_options(config, "train")
    elif data.train == "synthetic":
        options = {
            "num_classes": data.synthetic.num_classes,
            "images_per_class": data.synthetic.images_per_class,
            "size": data.image_size,
            "seed": data.seed,
        }
    if data.under:
        if data.train in ("glyphs", "synthetic"):
            raise ValueError(f"data.under: {data.under!r}; allowed only where data.train is a path")
        options["under"] = data.under
    try:
        images = open_images(data.train, **options)
    except ValueError as error:
        raise ValueError(f"data.train: {error}") from error
    if len(images) == 0:
        raise ValueError(f"data.train: {data.train} holds no images")
    return keep_classes(images, data.min_images_per_class)


def build_order(config: Config, images: ImageSet) -> Order:
    """data.order over the images."""
    seed = config.train.seed
    if config.data.order == "classes":
        return ClassesOrder(images.labels, seed)
    if config.data.order == "pk":
        return PKOrder(images.labels, seed, config.data.images_per_class)
    return ImagesOrder(images.labels, seed)


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


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The backbone's optimiser over its trainable parameters."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim > 1]
    vectors = [parameter for parameter in trainable if parameter.ndim <= 1]
    decay = config.weight_decay if config.decay_vectors else 0.0
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": decay},
    ]
    groups = [group for group in groups if group["params"]]
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


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
    config: Config, num_classes: int, world: int, device: torch.device
) -> ModelParallelSoftmax:
    """The sharded head."""
    head = config.head
    return ModelParallelSoftmax(
        config.backbone.embedding_dim,
        num_classes,
        objective=build_objective(config),
        candidates=build_candidates(config),
        optimizer=build_row_rule(config),
        untouched=head.untouched,
        compute_dtype=getattr(torch, head.compute_dtype),
        row_dtype=torch.float64 if head.compute_dtype == "float64" else torch.float32,
        kernel=head.kernel,
        e_budget_bytes=head.e_budget_bytes,
        batch_capacity=local_capacity(config, world),
        init_std=head.init_std,
        device=device,
        seed=config.train.seed,
    )


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
