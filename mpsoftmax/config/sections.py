"""The configuration as a whole, and its sections that are neither data nor head."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mpsoftmax.config.checks import check_combinations, check_ranges
from mpsoftmax.config.data_sections import DataConfig
from mpsoftmax.config.head_sections import HeadConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where the run lives."""

    dir: str = "runs/default"
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, wandb/. A run found there is resumed."""
    resume: bool = True
    """Continue from the run folder's latest checkpoint; false refuses a folder that holds a run."""


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
    start_from: str | None = None
    """Run folder or checkpoint whose backbone this run starts from; null: from scratch."""


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
class LossScaleConfig:
    """The dynamic loss scale of precision fp16: one for all ranks, backbone and head."""

    initial: float = 65536.0
    """Where it starts."""
    growth: float = 2.0
    """Factor after `growth_every` steps without overflow."""
    backoff: float = 0.5
    """Factor after a step that overflowed, which is skipped."""
    growth_every: int = 2000
    """Steps in a row without overflow before it grows."""
    least: float = 1.0
    """It does not fall below."""


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
    engine: str | dict[str, Any] = "ddp"
    """Who runs the backbone: ddp, fsdp2, deepspeed, or {kind: deepspeed, stage: 2}."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """bf16, fp16: backbone under autocast with float32 parameters; auto: bf16 on GPUs with it, else fp32."""
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = None
    """Largest norm of the gradient; null: any."""
    clip_over: Literal["backbone", "joint"] = "backbone"
    """Whose norm clip_norm limits: the backbone's gradient, or backbone and class rows together."""
    max_skipped: int = 20
    """Steps in a row skipped for a loss or gradient that is not finite before training stops."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int | None = None
    """Steps between evaluations; null evaluates at the end only."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; null saves at the end only."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept."""
    checkpoint_async: bool = True
    """Checkpoints are written by a thread while training goes on; takes host memory for a copy of the rank's
    state. false: training waits."""
    max_failed_saves: int = 3
    """Checkpoints in a row that may be given up because they cannot be written, as on a full disk, before
    training stops; never the last one."""
    profile: tuple[int, int] | None = None
    """First and last step to trace with torch.profiler, into RUN/profile/."""
    timeout_s: float = 600.0
    """Seconds a collective waits for a rank before the run fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """W&B, TensorBoard, callbacks; credentials come from W&B's own variables, never from here."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """offline writes into the run folder and never asks for a login."""
    project: str = "mpsoftmax"
    """W&B project."""
    name: str | None = None
    """W&B run name; default the run folder's name."""
    entity: str | None = None
    """W&B team or user; null: the login's own."""
    group: str | None = None
    """W&B group, for runs that belong together."""
    tags: tuple[str, ...] = ()
    """W&B tags."""
    artifacts: Literal["reference", "backbone", "files", "none"] = "reference"
    """What W&B keeps of a checkpoint: its files' paths, its backbone alone as a file, all files, nothing."""
    best: str | None = None
    """SET/FIGURE by which a checkpoint gets the alias best; null: accuracy of the first set."""
    tensorboard: bool = False
    """Write RUN/tensorboard too (needs the extra mpsoftmax[tensorboard])."""
    report: bool = True
    """Write RUN/report.html when training ends, and gather RUN/report/ for it: a sample of at most 4,096
    training images is embedded once more."""
    callbacks: tuple[str, ...] = ()
    """Classes of yours to tell about the run: package.module:Class."""


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
