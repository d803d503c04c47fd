"""A classifier checkpoint of arcface_torch becomes a run folder of ours, which resumes at any world size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsoftmax.config import Config, from_tree
from mpsoftmax.config.loading import read_yaml
from mpsoftmax.head.running_state import RunningState
from mpsoftmax.migrate.backbones import config_of, named
from mpsoftmax.migrate.config_file import read_config_file
from mpsoftmax.migrate.configs import translate
from mpsoftmax.migrate.networks import Detected, detect, fitted
from mpsoftmax.migrate.shards import STATES, Classifier, check_rows, read_classifier
from mpsoftmax.migrate.translation import whole
from mpsoftmax.migrate.writing import joined, write_run
from mpsoftmax.train.datasets import open_training_images
from mpsoftmax.train.engines.named_state import trained
from mpsoftmax.train.engines.protocol import OPTIMIZER
from mpsoftmax.train.parts import build_objective, build_row_rule, build_weights
from mpsoftmax.train.state import HEAD


@dataclass(frozen=True)
class ConvertedRun:
    """What was made of a classifier checkpoint.

    Attributes:
        num_classes: C.
        embedding_dim: D.
        files: Files of ranks that were read.
        step: At which the run goes on.
        carried: Optimiser rows of the classes, by our name.
        momenta: Parameters of the backbone whose optimiser state came along.
        notes: What else is to be said.
    """

    num_classes: int
    embedding_dim: int
    files: int
    step: int
    carried: tuple[str, ...]
    momenta: int
    notes: tuple[str, ...]


def convert_classifier(
    source: Path,
    folder: Path,
    *,
    config_file: Path | None = None,
    world: int | None = None,
    overrides: Sequence[str] = (),
) -> ConvertedRun:
    """Write a run folder: rows, their optimiser rows, backbone and its optimiser, step and position.

    Args:
        source: Folder of checkpoint_gpu_*.pt, or of rank_*_softmax_weight.pt with backbone.pth.
        folder: A new run folder.
        config_file: The config it was trained with: theirs (.py), or one of ours.
        world: GPUs that batch_size of their config is multiplied by; None: as many as there are files.
        overrides: key.path=value of our configuration, applied last.

    Raises:
        ValueError: files are missing or do not fit together, the data set or the config; says what.
    """
    classifier = read_classifier(source)
    told = configured(config_file, world or len(classifier.shards))
    said, tree = list(told.said), told.tree
    check_rows(source, classifier, told.num_classes)
    net = detect(classifier.backbone)
    if not tree:
        tree = told_by_files(classifier)
        said.append("no --config: objective, data and batch size are our defaults or what you gave")
    tree.setdefault("run", {})["dir"] = str(folder)
    config = config_of(tree, net, overrides)
    fit(config, folder, classifier, said)
    step = classifier.iterations // told.accumulation
    rows, carried = row_tensors(folder, config, classifier, step)
    backbone = fitted(classifier.backbone, net)
    momenta = optimizer_tensors(classifier, config, net)
    state = {
        "samples": step * config.train.batch_size if config_file else 0,
        "world": len(classifier.shards),
        "num_classes": classifier.num_classes,
    }
    write_run(folder, config, step, {**named(backbone), **momenta, **rows}, state)
    owners = {name.rpartition(".")[0] for name in momenta}
    return ConvertedRun(
        num_classes=classifier.num_classes,
        embedding_dim=net.embedding_dim,
        files=len(classifier.shards),
        step=step,
        carried=carried,
        momenta=len(owners),
        notes=(*said, *classifier.notes),
    )


@dataclass(frozen=True)
class Told:
    """What a config says.

    Attributes:
        tree: Our configuration; empty where there is no config.
        num_classes: Classes that it claims.
        accumulation: Iterations of an optimiser step.
        said: What is to be said about it.
    """

    tree: dict[str, Any]
    num_classes: int | None = None
    accumulation: int = 1
    said: tuple[str, ...] = ()


def configured(path: Path | None, world: int) -> Told:
    """What the config says: theirs (.py), ours, or none."""
    if path is None:
        return Told({})
    if path.suffix != ".py":
        tree = read_yaml(path)
        return Told(tree, accumulation=from_tree(tree).train.accumulation)
    foreign = read_config_file(path)
    given, made = foreign.values, translate(foreign, world)
    lost = [row.key for row in made.rows if not row.becomes and row.value not in (False, None)]
    said = (
        f"{path}: no counterpart of {', '.join(lost)}; convert the config alone to see the reasons"
    )
    return Told(
        made.tree,
        whole(given, "num_classes") if "num_classes" in given else None,
        whole(given, "gradient_acc") if "gradient_acc" in given else 1,
        (said,) if lost else (),
    )


def told_by_files(classifier: Classifier) -> dict[str, Any]:
    """What the optimiser and the schedule in the files say about the configuration."""
    group, schedule = classifier.group, classifier.schedule
    optimizer: dict[str, Any] = {"kind": classifier.kind or "sgd"}
    rate = group.get("initial_lr", group.get("lr"))
    for name, value in (("lr", rate), ("weight_decay", group.get("weight_decay"))):
        if isinstance(value, int | float):
            optimizer[name] = float(value)
    rows = {name: value for name, value in optimizer.items() if name != "lr"}
    total, warmup = schedule.get("total_iters"), schedule.get("warmup_iters", 0)
    train: dict[str, Any] = {"optimizer": optimizer, "precision": "auto", "clip_norm": 5.0}
    train["steps"] = total if isinstance(total, int) and total > 0 else classifier.iterations + 1
    train["schedule"] = {"kind": "polynomial", "power": 1.0, "warmup": float(warmup)}
    return {"head": {"optimizer": rows}, "train": train}


def fit(config: Config, folder: Path, classifier: Classifier, said: list[str]) -> None:
    """Raise ValueError where the data set that the run will be trained on has other classes."""
    rule = build_row_rule(config)
    kind = config.train.optimizer.kind
    if classifier.kind is not None and classifier.kind != kind:
        raise ValueError(
            f"train.optimizer.kind: {kind}; the files hold the state of {classifier.kind}; allowed: that"
        )
    if rule is None or build_weights(config).num_centres > 1:
        raise ValueError(
            f"head.weights: {config.head.weights!r}; allowed: learned, a row a class as arcface_torch has"
        )
    if set(rule.buffers) != set(STATES[kind].values()):
        raise ValueError(
            f"head.optimizer: {config.head.optimizer!r}; allowed: {kind}, as the backbone's"
        )
    paths = [dataset.path for dataset in config.data.datasets]
    absent = [p for p in paths if p not in ("glyphs", "synthetic") and not Path(p).exists()]
    if absent:
        said.append(f"data.train: {absent[0]} is not on this machine: its classes are not counted")
        return
    there = len(open_training_images(config).class_names)
    if there != classifier.num_classes:
        more = classifier.num_classes - there
        raise ValueError(
            f"{len(classifier.shards)} shards hold {classifier.num_classes} classes; data.train="
            f"{config.data.train} has {there}: {abs(more)} {'more' if more > 0 else 'fewer'} in the shards"
        )


def row_tensors(
    folder: Path, config: Config, classifier: Classifier, step: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The head's tensors, and the names of optimiser rows that came along.

    SGD's rows are those of a table that counts from 0: then both values of head.untouched fit them. Adam's
    bias correction needs their age.
    """
    num, dim = classifier.num_classes, classifier.shards[0].shape[1]
    dtype = getattr(torch, config.head.row_dtype or "float32")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": joined(folder.parent, classifier.shards, num, dtype)}
    for name in STATES[config.train.optimizer.kind].values():
        parts = classifier.states.get(name) or (torch.zeros(num, dim),)
        tensors[name] = joined(folder.parent, parts, num, dtype)
    rule = build_row_rule(config)
    assert rule is not None
    if classifier.row_age and config.head.untouched == "lazy":
        raise ValueError(
            "head.untouched: lazy; allowed: frozen, with the state of adamw: its bias correction counts "
            "steps that a lazy table would have to have logged"
        )
    age = classifier.row_age
    tensors["row_step"] = torch.full((num,), age, dtype=torch.int64)
    tensors["num_steps"] = torch.tensor(age)
    tensors["step_log"] = torch.zeros(0, len(rule.hyper), dtype=torch.float64)
    tensors["objective_state"] = RunningState(build_objective(config).for_classes(num)).tensor()
    tensors["merged"] = torch.zeros(0, 2, dtype=torch.int64)
    return {HEAD + name: value for name, value in tensors.items()}, tuple(classifier.states)


def optimizer_tensors(classifier: Classifier, config: Config, net: Detected) -> dict[str, Tensor]:
    """The backbone's optimiser state by our names.

    An optimiser numbers parameters in the order of the network, which is that of the state dict.

    Raises:
        ValueError: it has more parameters, or ones of other shapes, than the network.
    """
    if not classifier.optimizer:
        return {}
    empty = net.without_data()
    parameters, moving = dict(empty.named_parameters()), trained(empty)
    order = [name for name in classifier.backbone if name in parameters]
    tensors: dict[str, Tensor] = {}
    for number, state in classifier.optimizer.items():
        if not 0 <= number < len(order):
            raise ValueError(
                f"state_optimizer: parameter {number}; the backbone has {len(order)} parameters"
            )
        name = order[number]
        if name in moving:
            tensors |= state_of(name, parameters[name], state, config.train.optimizer.kind)
    return tensors


def state_of(
    name: str, parameter: Tensor, state: Mapping[str, Any], kind: str
) -> dict[str, Tensor]:
    """State of one parameter."""
    keys = (*STATES[kind], *(("step",) if kind == "adamw" else ()))
    found = {}
    for key in keys:
        value = state.get(key)
        if value is None:
            continue
        value = torch.as_tensor(value, dtype=torch.float32)
        if key != "step" and value.shape != parameter.shape:
            raise ValueError(
                f"state_optimizer: {key} of {name} has shape {tuple(value.shape)}; allowed: "
                f"{tuple(parameter.shape)}"
            )
        found[f"{OPTIMIZER}{name}.{key}"] = value
    return found
