"""The configuration: frozen dataclasses, one strict loader, every check.

A run is described by one YAML file and `key.path=value` overrides, both read by `load` and nothing else.
Unknown keys, wrong types and combinations without meaning are ValueErrors that name the path.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mpsoftmax.strict import build, parse_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where the run lives."""

    dir: str = "runs/default"
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, wandb/. A run found there is resumed."""
    resume: bool = True
    """Continue from the run folder's latest checkpoint; false refuses a folder that holds a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphsConfig:
    """Characters rendered from installed fonts (data.train: glyphs)."""

    fonts: tuple[str, ...] = ()
    """Font files or folders to use besides those found."""
    system_fonts: bool = True
    """Use fonts found on the system."""
    matplotlib_fonts: bool = True
    """Use the fonts that matplotlib carries."""
    code_points: Literal["all", "cjk"] = "all"
    """all: every character drawn by enough fonts; cjk: the 20,902 ideographs U+4E00 to U+9FA5."""
    min_fonts: int = 4
    """Least number of different images, over all fonts, that a character must have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Random patterns, one a class (data.train: synthetic)."""

    num_classes: int = 1000
    """Classes."""
    images_per_class: int = 20
    """Images of each class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is trained on and in which order."""

    train: str = "glyphs"
    """glyphs, synthetic, or a path: image folder, .tar, .rec, .arrow."""
    under: str = ""
    """Only the classes below this path of a folder or tar."""
    eval: tuple[str, ...] = ()
    """Verification sets: .bin files, pair lists (list.csv or list.txt, images beside it or in
    `list.csv@folder-or.tar`), or glyphs-open, glyphs-closed."""
    image_size: tuple[int, int] = (112, 112)
    """Height and width in pixels fed to the backbone."""
    crop: float = 1.0
    """Central share of each side of an image that is kept before resizing, in training and evaluation."""
    min_images_per_class: int = 1
    """Classes with fewer images are left out."""
    order: Literal["images", "classes", "pk"] = "images"
    """Uniform over images, uniform over classes, or groups of images_per_class images of one class."""
    images_per_class: int = 4
    """K of the pk order."""
    augment: str | tuple[dict[str, Any], ...] = "face"
    """A named default (none, face, reid, glyph) or a list of {kind: ..., parameters}."""
    decoder: Literal["pillow", "simplejpeg", "opencv"] = "pillow"
    """Who decodes images; bytes differ between decoders, so it is never chosen silently."""
    workers: int = 1
    """Worker processes a rank that decode and augment; 0 decodes in the training process."""
    max_corrupt: int = 0
    """Undecodable images tolerated (left out of the loss) before training stops with the file's name."""
    seed: int = 0
    """Key of the glyph split (which characters and fonts are held out)."""
    glyphs: GlyphsConfig = field(default_factory=GlyphsConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """The embedding network."""

    name: str = "iresnet50"
    """iresnet18/34/50/100/200, mobilefacenet, vit_t/s/b/l, small, timm:NAME, transformers:NAME, or
    package.module:callable."""
    embedding_dim: int = 512
    """D."""
    activation_checkpointing: bool = False
    """Recompute activations block by block in the backward pass."""
    channels_last: bool = False
    """NHWC memory layout."""
    compile: bool = False
    """torch.compile the backbone."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that backbone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """The sharded classifier."""

    objective: str | dict[str, Any] = "arcface"
    """normface, cosface, arcface, combined, sphereface; or {kind: arcface, scale: 64, margin: 0.5}."""
    candidates: str | dict[str, Any] = "all"
    """all, uniform (rate 0.1), or {kind: uniform, rate: 0.2}."""
    optimizer: str | dict[str, Any] = "sgd"
    """sgd, adamw, or {kind: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-4}; lr defaults to
    train.optimizer's."""
    untouched: Literal["frozen", "lazy"] = "frozen"
    """What sampled steps do with rows they leave out."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """dtype of the head's matrix products."""
    kernel: Literal["auto", "blocked", "reference"] = "auto"
    """Which kernel sweeps the classes."""
    e_budget_bytes: int = 2**30
    """Bytes of exponentials kept between forward and update; the rest is recomputed."""
    init_std: float = 0.01
    """Standard deviation of the initial class rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The backbone's optimiser."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """sgd (momentum, L2 decay) or adamw."""
    lr: float = 0.1
    """Learning rate at factor 1 of the schedule."""
    momentum: float = 0.9
    """Of sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw."""
    weight_decay: float = 5e-4
    """Decay of weights."""
    decay_vectors: bool = True
    """Decay biases and norm parameters too, as arcface_torch does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Factor on the learning rates of backbone and head, a function of the step alone."""

    kind: Literal["polynomial", "cosine", "step", "constant"] = "polynomial"
    """Shape after the warm-up."""
    warmup: float = 0.0
    """Steps of linear warm-up, or a fraction of all steps where below 1."""
    power: float = 2.0
    """Of polynomial."""
    milestones: tuple[int, ...] = ()
    """Of step: steps at which the factor is multiplied by gamma."""
    gamma: float = 0.1
    """Of step."""
    end: float = 0.0
    """Final factor of polynomial and cosine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop."""

    steps: int | None = None
    """Optimiser steps; give this or epochs."""
    epochs: float | None = None
    """Passes over the images; rounded up to whole steps."""
    batch_size: int = 128
    """Samples a step over all ranks and micro-batches."""
    accumulation: int = 1
    """Micro-batches a step."""
    seed: int = 0
    """Key of initial weights, order, augmentation and sampling."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """bf16: backbone under autocast with float32 parameters."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = None
    """Largest norm of the backbone's gradient."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int | None = None
    """Steps between evaluations; null evaluates at the end only."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; null saves at the end only."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept."""
    timeout_s: float = 600.0
    """Seconds a collective waits for a rank before the run fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """Weights & Biases; credentials come from its own environment variables, never from here."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """offline writes into the run folder and never asks for a login."""
    project: str = "mpsoftmax"
    """W&B project."""
    name: str | None = None
    """W&B run name; default the run folder's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that defines a run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        """Combinations and ranges."""
        check_ranges(self)
        check_combinations(self)


def check_ranges(config: Config) -> None:
    """Raise ValueError naming the first value out of range."""
    data, train, head = config.data, config.train, config.head
    schedule, optimizer = train.schedule, train.optimizer
    for path, value, least in (
        ("data.image_size", min(data.image_size), 8),
        ("data.min_images_per_class", data.min_images_per_class, 1),
        ("data.images_per_class", data.images_per_class, 1),
        ("data.workers", data.workers, 0),
        ("data.max_corrupt", data.max_corrupt, 0),
        ("data.seed", data.seed, 0),
        ("data.glyphs.min_fonts", data.glyphs.min_fonts, 2),
        ("data.synthetic.num_classes", data.synthetic.num_classes, 1),
        ("data.synthetic.images_per_class", data.synthetic.images_per_class, 1),
        ("backbone.embedding_dim", config.backbone.embedding_dim, 1),
        ("head.e_budget_bytes", head.e_budget_bytes, 0),
        ("train.steps", train.steps, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.accumulation", train.accumulation, 1),
        ("train.seed", train.seed, 0),
        ("train.log_every", train.log_every, 1),
        ("train.eval_every", train.eval_every, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.keep_checkpoints", train.keep_checkpoints, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{path}: {value}; allowed: at least {least}")
    for path, number in (
        ("train.epochs", train.epochs),
        ("train.clip_norm", train.clip_norm),
        ("train.timeout_s", train.timeout_s),
        ("train.optimizer.lr", optimizer.lr),
        ("train.schedule.power", schedule.power),
        ("train.schedule.gamma", schedule.gamma),
        ("head.init_std", head.init_std),
        ("data.crop", data.crop),
    ):
        if number is not None and not 0 < number < float("inf"):
            raise ValueError(f"{path}: {number}; allowed: a positive number")
    for path, number, limit in (
        ("train.schedule.warmup", schedule.warmup, float("inf")),
        ("train.schedule.end", schedule.end, 1.0),
        ("train.optimizer.weight_decay", optimizer.weight_decay, float("inf")),
        ("train.optimizer.momentum", optimizer.momentum, 1.0),
        ("train.optimizer.betas[0]", optimizer.betas[0], 1.0),
        ("train.optimizer.betas[1]", optimizer.betas[1], 1.0),
    ):
        if not 0 <= number < limit:
            raise ValueError(f"{path}: {number}; allowed: 0 <= value < {limit}")


def check_combinations(config: Config) -> None:
    """Raise ValueError for settings that contradict or ignore each other."""
    train, data = config.train, config.data
    if not config.run.dir:
        raise ValueError("run.dir: ''; allowed: the path of a folder")
    if data.crop > 1:
        raise ValueError(f"data.crop: {data.crop}; allowed: 0 < crop <= 1")
    if (train.steps is None) == (train.epochs is None):
        raise ValueError(
            f"train.steps: {train.steps} and train.epochs: {train.epochs}; allowed: exactly one of them "
            "(the other null)"
        )
    if train.batch_size < train.accumulation:
        raise ValueError(
            f"train.accumulation: {train.accumulation}; allowed: at most train.batch_size="
            f"{train.batch_size}, so that no micro-batch is empty"
        )
    if data.order == "pk" and train.batch_size % (train.accumulation * data.images_per_class):
        raise ValueError(
            f"train.batch_size: {train.batch_size}; allowed with data.order=pk: a multiple of "
            f"train.accumulation * data.images_per_class={train.accumulation * data.images_per_class}"
        )
    if train.schedule.milestones and train.schedule.kind != "step":
        raise ValueError(
            f"train.schedule.milestones: {train.schedule.milestones}; allowed only with kind: step"
        )
    if train.schedule.kind == "step" and not train.schedule.milestones:
        raise ValueError("train.schedule.milestones: empty; kind: step needs at least one")


# -- loading -----------------------------------------------------------------------------------


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `key.path=value` overrides, all strictly checked.

    Args:
        path: The file; None starts from the defaults.
        overrides: Values are YAML: `train.steps=100`, `data.eval=[a.bin, b.bin]`.

    Raises:
        ValueError: unreadable file, unknown key (with the nearest known one), wrong type, value out of
            range, or a combination without meaning.
    """
    tree = read_yaml(path) if path is not None else {}
    for override in overrides:
        apply_override(tree, override)
    return from_tree(tree)


def from_tree(tree: Mapping[str, Any]) -> Config:
    """A Config from nested mappings, strictly."""
    return typing.cast(Config, build(Config, tree, ""))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path}: cannot be read: {error}") from error
    tree = parse_yaml(text, f"config {path}")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"config {path}: holds a {type(tree).__name__}; allowed: a mapping")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in a tree of mappings, in place.

    A name on the way ({head: {objective: arcface}}) becomes a mapping {kind: name}, so that
    head.objective.margin=0.4 works on top of head.objective=arcface.
    """
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ValueError(f"override {override!r}; allowed: key.path=value")
    for key in keys[:-1]:
        below = tree.get(key)
        if isinstance(below, str):
            below = {"kind": below}
        elif below is None:
            below = {}
        elif not isinstance(below, dict):
            raise ValueError(f"override {override!r}: {key} is {below!r}, which has no fields")
        tree[key] = below
        tree = below
    tree[keys[-1]] = parse_yaml(text, f"override {override!r}")


def to_tree(config: Config) -> dict[str, Any]:
    """Nested plain mappings and lists, ready for YAML or JSON."""
    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def plain(value: Any) -> Any:
    """Tuples become lists, recursively."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def to_yaml(config: Config) -> str:
    """The resolved configuration as `load` reads it back."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)
