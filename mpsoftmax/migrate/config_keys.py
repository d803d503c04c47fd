"""What each key of an arcface_torch config becomes here.

Each function takes (made, key, value, all values, sizes, path of the config) and puts the key into `made`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpsoftmax.migrate.networks import NETWORKS
from mpsoftmax.migrate.translation import Sizes, Translation, number, whole
from mpsoftmax.strict import suggestion

SCALE, MOMENTUM = 64.0, 0.9
"""Numbers that train_v2.py writes into its code."""
SYNTHETIC = "synthetic"


def margins(made: Translation, key: str, value: Any, *_: Any) -> None:
    """margin_list = (m1, m2, m3), as CombinedMarginLoss takes them."""
    listed = isinstance(value, list | tuple) and len(value) == 3
    if not listed or not all(isinstance(m, int | float) for m in value):
        raise ValueError(f"{key}: {value!r:.100}; allowed: three numbers (m1, m2, m3)")
    m1, m2, m3 = map(float, value)
    if m3 > 0:
        dropped = m1 != 1 or m2 != 0
        note = (
            f"m1 and m2 of {value} do nothing there: its code applies m3 alone. All three as published: "
            f"head.objective={{kind: combined, m1: {m1}, m2: {m2}, m3: {m3}}}"
        )
        kind = {"kind": "cosface", "scale": SCALE, "margin": m3}
        made.put(key, value, {"head.objective": kind}, note if dropped else "")
    elif m1 == 1 and m3 == 0:
        note = "exact gradient; variant: straight_through computes theirs (docs/migration.md)"
        kind = {"kind": "arcface", "scale": SCALE, "margin": m2}
        made.put(key, value, {"head.objective": kind}, note)
    else:
        raise ValueError(
            f"{key}: {value}; CombinedMarginLoss refuses it too; allowed: (1, m2, 0) or (1, 0, m3), or "
            "head.objective={kind: combined, ...} of ours"
        )


def network(made: Translation, key: str, value: Any, *_: Any) -> None:
    """The backbone."""
    if value not in NETWORKS:
        raise ValueError(
            f"{key}: {value!r} has no counterpart{suggestion(str(value), list(NETWORKS))}"
        )
    name, options = NETWORKS[value]
    made.put(
        key,
        value,
        {"backbone.name": name, **({"backbone.options": dict(options)} if options else {})},
    )


def output(made: Translation, key: str, value: Any, _: Any, __: Any, path: Path) -> None:
    """The run folder; None stands for work_dirs/NAME."""
    made.put(key, value, {"run.dir": str(value) if value else f"work_dirs/{path.stem}"})


def sampling(made: Translation, key: str, value: Any, values: Mapping[str, Any], *_: Any) -> None:
    """Partial FC's rate."""
    rate = number(key, value)
    if rate >= 1:
        made.put(key, value, {"head.candidates": "all"})
        return
    if rate == 0:
        raise ValueError(
            f"{key}: 0 (positives alone); allowed: a rate above 0; dsoftmax_k of ours comes nearest"
        )
    lazy = values["optimizer"] == "sgd"
    note = (
        "lazy: rows left out move as in PartialFC_V2, by momentum and decay, but only when next needed; "
        "frozen leaves them as they are, as PartialFC of 2022 and earlier did"
        if lazy
        else "rows left out stay as they are; PartialFC_V2 moves them by old moments and decay"
    )
    becomes = {"head.candidates": {"kind": "uniform", "rate": rate}}
    made.put(key, value, {**becomes, "head.untouched": "lazy" if lazy else "frozen"}, note)


def noise_filter(made: Translation, key: str, value: Any, *_: Any) -> None:
    """Partial FC's filter of likely wrong labels."""
    threshold = number(key, value)
    kind: Any = {"kind": "noise_filter", "threshold": threshold} if threshold > 0 else "all"
    made.put(key, value, {"head.negatives": kind})


def precision(made: Translation, key: str, value: Any, *_: Any) -> None:
    """Mixed precision."""
    note = "one loss scale for all ranks; bf16 (or auto) needs none" if value else ""
    made.put(key, value, {"train.precision": "fp16" if value else "fp32"}, note)


def batch(made: Translation, key: str, value: Any, _: Any, sizes: Sizes, *__: Any) -> None:
    """Of one GPU there, of a step here."""
    total = sizes.batch * sizes.accumulation
    micro = f" x {sizes.accumulation} micro-batches" if sizes.accumulation > 1 else ""
    made.put(key, value, {"train.batch_size": total}, f"{value} x {sizes.world} GPUs{micro}")


def accumulation(made: Translation, key: str, value: Any, *_: Any) -> None:
    """Micro-batches of a step."""
    note = "steps are optimiser steps here, iterations there" if value != 1 else ""
    made.put(key, value, {"train.accumulation": value}, note)


def optimizer(made: Translation, key: str, value: Any, *_: Any) -> None:
    """Of backbone and class rows alike."""
    if value not in ("sgd", "adamw"):
        raise ValueError(f"{key}: {value!r}; allowed: sgd or adamw")
    made.put(key, value, {"train.optimizer.kind": value, "head.optimizer.kind": value})


def rate(made: Translation, key: str, value: Any, *_: Any) -> None:
    """Learning rate; the class rows take the backbone's."""
    made.put(key, value, {"train.optimizer.lr": float(number(key, value))})


def decay(made: Translation, key: str, value: Any, *_: Any) -> None:
    """Of backbone and class rows alike."""
    amount = float(number(key, value))
    made.put(
        key, value, {"train.optimizer.weight_decay": amount, "head.optimizer.weight_decay": amount}
    )


def momentum(made: Translation, key: str, value: Any, values: Mapping[str, Any], *_: Any) -> None:
    """Of SGD."""
    if values["optimizer"] != "sgd":
        made.use(key, value, "adamw has none")
        return
    note = "" if value == MOMENTUM else f"train_v2.py does not read it and uses {MOMENTUM}"
    both = ("train.optimizer.momentum", "head.optimizer.momentum")
    made.put(key, value, dict.fromkeys(both, MOMENTUM), note)


def iterations(to: str) -> Any:
    """A period in iterations: here in steps."""

    def put(
        made: Translation, key: str, value: Any, values: Mapping[str, Any], sizes: Sizes, *_: Any
    ) -> None:
        made.put(key, value, {to: max(1, whole(values, key) // sizes.accumulation)})

    return put


def save_all(made: Translation, key: str, value: Any, _: Any, sizes: Sizes, *__: Any) -> None:
    """A checkpoint an epoch: there, the backbone is written every epoch whatever this says."""
    every = sizes.steps(1) if sizes.per_epoch is not None else None
    note = "every epoch, whole and for any number of GPUs"
    if every is None:
        note = "the last step is always saved, whole; say more often by train.checkpoint_every"
    made.put(key, value, {"train.checkpoint_every": every and max(1, every)}, note)


def epochs(made: Translation, key: str, value: Any, _: Any, sizes: Sizes, *__: Any) -> None:
    """How long."""
    if sizes.per_epoch is None:
        made.put(key, value, {"train.epochs": float(number(key, value))})
        return
    note = f"{sizes.per_epoch} iterations an epoch"
    made.put(key, value, {"train.steps": max(1, sizes.steps(number(key, value)))}, note)


def warmup(made: Translation, key: str, value: Any, values: Any, sizes: Sizes, *_: Any) -> None:
    """Linear, as there, but for the first step: theirs runs at the full rate."""
    if sizes.per_epoch is not None:
        steps = sizes.steps(number(key, value))
    else:  # a share of the whole training, which is below 1 by then
        steps = number(key, value) / max(1.0, number("num_epoch", values.get("num_epoch")))
    note = "its very first iteration runs at the full rate there" if steps else ""
    made.put(key, value, {"train.schedule.warmup": steps}, note)


def records(made: Translation, key: str, value: Any, values: Mapping[str, Any], *_: Any) -> None:
    """The folder of train.rec, or of folders of images."""
    if value == SYNTHETIC:
        classes = whole(values, "num_classes")
        becomes = {"data.train": SYNTHETIC, "data.synthetic.num_classes": classes}
        made.put(key, value, becomes)
        return
    folder = Path(str(value))
    if folder.is_dir() and not (folder / "train.rec").exists():
        made.put(key, value, {"data.train": str(folder)}, "no train.rec in it: a folder a class")
        return
    note = "" if folder.is_dir() else "not on this machine: taken as a folder with train.rec"
    made.put(key, value, {"data.train": str(folder / "train.rec")}, note)


def targets(made: Translation, key: str, value: Any, values: Mapping[str, Any], *_: Any) -> None:
    """Verification sets beside train.rec."""
    folder = Path(str(values.get("rec", "")))
    files = [folder / f"{name}.bin" for name in value or ()]
    there = [file for file in files if file.exists() or not folder.is_dir()]
    absent = [file.name for file in files if file not in there]
    note = f"left out, not in {folder}: {', '.join(absent)}" if absent else ""
    made.put(key, value, {"data.eval": [str(file) for file in there]}, note)


def tracking(made: Translation, key: str, value: Any, *_: Any) -> None:
    """W&B."""
    made.put(key, value, {"track.wandb": "online" if value else "disabled"})


def artifacts(made: Translation, key: str, value: Any, *_: Any) -> None:
    """What W&B keeps."""
    made.put(key, value, {"track.artifacts": "backbone" if value else "none"})


def counted(how: str) -> Any:
    """A number that is counted here."""

    def put(made: Translation, key: str, value: Any, *_: Any) -> None:
        made.use(key, value, how)

    return put


def same(to: str) -> Any:
    """A key of the same meaning."""

    def put(made: Translation, key: str, value: Any, *_: Any) -> None:
        made.put(
            key, value, {} if value is None else {to: value}, "" if value is not None else "unset"
        )

    return put


KEYS: dict[str, Any] = {
    "margin_list": margins,
    "network": network,
    "output": output,
    "embedding_size": same("backbone.embedding_dim"),
    "sample_rate": sampling,
    "interclass_filtering_threshold": noise_filter,
    "fp16": precision,
    "batch_size": batch,
    "gradient_acc": accumulation,
    "optimizer": optimizer,
    "lr": rate,
    "momentum": momentum,
    "weight_decay": decay,
    "verbose": iterations("train.eval_every"),
    "frequent": iterations("train.log_every"),
    "save_all_states": save_all,
    "seed": same("train.seed"),
    "num_workers": same("data.workers"),
    "rec": records,
    "num_classes": counted("counted from the images; compared when a checkpoint is converted"),
    "num_image": counted("counted from the images; used here for train.steps"),
    "num_epoch": epochs,
    "warmup_epoch": warmup,
    "val_targets": targets,
    "using_wandb": tracking,
    "wandb_entity": same("track.entity"),
    "wandb_project": same("track.project"),
    "suffix_run_name": same("track.name"),
    "save_artifacts": artifacts,
}
