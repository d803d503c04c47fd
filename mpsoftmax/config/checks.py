"""What the values of a configuration must be, each and together."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from mpsoftmax.config.data_sections import DataConfig, DatasetConfig

if TYPE_CHECKING:
    from mpsoftmax.config.sections import Config, TrainConfig


FIGURES = ("accuracy", "auc", "eer", "recall_at_1", "top1")
"""Of an evaluation, by which a checkpoint can be the best."""


HELD_BACK = "held-back"
"""The verification set made of data.held_back classes, in data.eval."""


def check_ranges(config: Config) -> None:
    """Raise ValueError naming the first value out of range."""
    data, train, head = config.data, config.train, config.head
    schedule, optimizer = train.schedule, train.optimizer
    for path, value, least in (
        ("data.image_size", min(data.image_size), 8),
        ("data.min_images_per_class", data.min_images_per_class, 1),
        ("data.images_per_class", data.images_per_class, 1),
        ("data.order_window", data.order_window, 1),
        ("data.held_back", data.held_back, 0),
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
        ("train.max_failed_saves", train.max_failed_saves, 0),
        ("train.max_skipped", train.max_skipped, 1),
        ("train.loss_scale.growth_every", train.loss_scale.growth_every, 1),
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
    check_datasets(config.data)
    check_held_back(config.data)
    check_head(config)
    check_precision(train)
    check_tracking(config)
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


def check_precision(train: TrainConfig) -> None:
    """Raise ValueError for a loss scale or a clipping that means nothing."""
    scale = train.loss_scale
    if not 0 < scale.least <= scale.initial < float("inf"):
        raise ValueError(
            f"train.loss_scale.initial: {scale.initial}; allowed: a number, at least train.loss_scale.least="
            f"{scale.least} > 0"
        )
    if not 1 <= scale.growth < float("inf"):
        raise ValueError(f"train.loss_scale.growth: {scale.growth}; allowed: at least 1")
    if not 0 < scale.backoff < 1:
        raise ValueError(f"train.loss_scale.backoff: {scale.backoff}; allowed: 0 < value < 1")
    if train.clip_over == "joint" and train.clip_norm is None:
        raise ValueError("train.clip_over: joint; allowed only with train.clip_norm")


def check_tracking(config: Config) -> None:
    """Raise ValueError for what cannot be tracked or traced."""
    track, profile = config.track, config.train.profile
    if profile is not None and not 1 <= profile[0] <= profile[1]:
        raise ValueError(
            f"train.profile: {list(profile)}; allowed: first and last step, 1 <= first <= last"
        )
    for i, path in enumerate(track.callbacks):
        module, colon, name = path.partition(":")
        if not (colon and name.isidentifier() and all(map(str.isidentifier, module.split(".")))):
            raise ValueError(f"track.callbacks[{i}]: {path!r}; allowed: package.module:Class")
    if track.best is None:
        return
    name, _, figure = track.best.rpartition("/")
    names = [PurePath(spec.partition("@")[0]).stem for spec in config.data.eval]
    if name not in names:
        raise ValueError(
            f"track.best: {track.best!r}; allowed: SET/FIGURE with a set of data.eval: {names}"
        )
    if figure not in FIGURES and not figure.startswith("tar_at_far_"):
        raise ValueError(
            f"track.best: {track.best!r}; allowed figures: {', '.join(FIGURES)}, tar_at_far_X"
        )


def check_datasets(data: DataConfig) -> None:
    """Raise ValueError for a list of datasets that cannot be mixed."""
    if isinstance(data.train, str):
        return
    if not data.train:
        raise ValueError("data.train: an empty list; allowed: at least one dataset")
    if data.reader:
        raise ValueError(
            f"data.reader: {data.reader}; allowed only where data.train is one path; in a list give it to a "
            "dataset: {path: ..., reader: ...}"
        )
    if data.under:
        raise ValueError(
            f"data.under: {data.under!r}; allowed only where data.train is one path; in a list give it to a "
            "dataset: {path: ..., under: ...}"
        )
    datasets = data.datasets
    for i, dataset in enumerate(datasets):
        check_dataset(f"data.train[{i}]", dataset, alone=len(datasets) == 1)
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise ValueError(f"data.train: datasets named {names}; allowed: names that differ")
    if len({dataset.weight is None for dataset in datasets}) > 1:
        weights = [dataset.weight for dataset in datasets]
        raise ValueError(
            f"data.train: weights {weights}; allowed: a weight for every dataset, or for none (their "
            "numbers of images)"
        )


def check_held_back(data: DataConfig) -> None:
    """Raise ValueError where classes are held back for nothing, or the other way round."""
    wanted = HELD_BACK in data.eval
    if wanted != (data.held_back > 0):
        raise ValueError(
            f"data.held_back: {data.held_back} with data.eval={list(data.eval)}; allowed: both a number of "
            f"classes and {HELD_BACK!r} among data.eval, or neither"
        )
    if data.held_back and len(data.datasets) > 1:
        raise ValueError(
            f"data.held_back: {data.held_back}; allowed where data.train is one dataset: of several, an "
            "identity may lie in another one too"
        )


def check_dataset(path: str, dataset: DatasetConfig, *, alone: bool) -> None:
    """Raise ValueError naming the first value of one dataset that is not allowed."""
    if not dataset.path:
        raise ValueError(f"{path}.path: ''; allowed: glyphs, synthetic, or a path")
    if dataset.weight is not None and not 0 < dataset.weight < float("inf"):
        raise ValueError(f"{path}.weight: {dataset.weight}; allowed: a positive number")
    if dataset.margin is not None and alone:
        raise ValueError(
            f"{path}.margin: {dataset.margin}; allowed only beside other datasets; alone it is "
            "head.objective's margin"
        )
    least = dataset.min_images_per_class
    if least is not None and least < 1:
        raise ValueError(f"{path}.min_images_per_class: {least}; allowed: at least 1")
    if dataset.part:
        parse_part(f"{path}.part", dataset.part)


def parse_part(path: str, text: str) -> tuple[int, int]:
    """(k, n) of a part written k/n.

    Raises:
        ValueError: it is not 1 <= k <= n.
    """
    number, slash, count = text.partition("/")
    good = slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()
    if not good or not 1 <= int(number) <= int(count):
        raise ValueError(f"{path}: {text!r}; allowed: k/n with 1 <= k <= n, such as 1/2")
    return int(number), int(count)


def check_head(config: Config) -> None:
    """Raise ValueError where the head's settings for several datasets have none, or are out of range."""
    check_start(config)
    head, several = config.head, len(config.data.datasets) > 1
    for name, section in (("baskets", head.baskets), ("linking", head.linking)):
        if section is not None and not several:
            raise ValueError(
                f"head.{name}: given, but data.train is {config.data.train!r}; allowed: null, or a "
                "data.train that lists at least two datasets"
            )
    if head.baskets is not None:
        check_least("head.baskets.warmup", head.baskets.warmup, 0)
        check_cosine("head.baskets.duplicates", head.baskets.duplicates)
    if head.linking is not None:
        check_least("head.linking.every", head.linking.every, 1)
        check_least("head.linking.stable", head.linking.stable, 1)
        check_cosine("head.linking.threshold", head.linking.threshold)
        check_cosine("head.linking.release", head.linking.release)
        if not 0 <= head.linking.lead <= 2:
            raise ValueError(
                f"head.linking.lead: {head.linking.lead}; allowed: 0 <= value <= 2 (cosine)"
            )
        if not 0 <= head.linking.doubt < 1:
            raise ValueError(f"head.linking.doubt: {head.linking.doubt}; allowed: 0 <= value < 1")


def check_start(config: Config) -> None:
    """Raise ValueError for what is to become of classes that nothing brings."""
    head = config.head
    if head.new_rows is not None and head.start_from is None:
        raise ValueError(f"head.new_rows: {head.new_rows}; allowed only with head.start_from")
    if head.new_rows == "class_mean" and config.backbone.start_from is None:
        raise ValueError(
            "head.new_rows: class_mean; allowed only with backbone.start_from: features of a new backbone "
            "have no meaning"
        )
    if head.renamed is not None and head.new_rows is None:
        raise ValueError(f"head.renamed: {head.renamed}; allowed only with head.new_rows")


def check_least(path: str, value: int, least: int) -> None:
    """Raise ValueError where a number is too small."""
    if value < least:
        raise ValueError(f"{path}: {value}; allowed: at least {least}")


def check_cosine(path: str, value: float | None) -> None:
    """Raise ValueError where a threshold is no cosine."""
    if value is not None and not -1 <= value <= 1:
        raise ValueError(f"{path}: {value}; allowed: -1 <= value <= 1 (cosine)")
