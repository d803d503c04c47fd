"""The classifier of an arcface_torch training: one file a rank, read as it is cut there.

    checkpoint_gpu_{rank}.pt                                 since 2022, with save_all_states: everything
    rank_{rank}_softmax_weight.pt, ..._weight_mom.pt         before: rows and momentum, backbone.pth beside

The first C mod W ranks hold one class more than the others.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsoftmax.migrate.torch_files import read_file, state_dict_in

WHOLE = re.compile(r"checkpoint_gpu_(\d+)\.pt")
ROWS = re.compile(r"rank_(\d+)_softmax_weight\.pt")
BACKBONES = ("backbone.pth", "model.pt", "backbone.pt")
STATES = {"sgd": {"momentum_buffer": "momentum"}}
STATES["adamw"] = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}
"""Kind of optimiser -> its state of class rows there -> here."""
MOST_RANKS = 1024


@dataclass(frozen=True)
class Classifier:
    """What the files of all ranks hold.

    Attributes:
        shards: Rows [c, D] of every rank; mapped files.
        states: Optimiser rows of every rank by our name; empty where there are none.
        backbone: Names and tensors.
        optimizer: State of the backbone's parameters by their number in the optimiser.
        kind: sgd or adamw; None where no optimiser state was found.
        row_age: Updates of the class rows (adamw).
        iterations: Of the training; 0 where the files do not say.
        group: Numbers of the optimiser's last parameter group.
        schedule: State of the learning-rate schedule.
        notes: What else is to be said.
    """

    shards: list[Tensor]
    states: dict[str, list[Tensor]]
    backbone: dict[str, Tensor]
    optimizer: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    kind: str | None = None
    row_age: int = 0
    iterations: int = 0
    group: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Rows of all shards."""
        return sum(len(shard) for shard in self.shards)


def files_of(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """Files of a folder by rank."""
    matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in sorted(matches, key=str) if match}


def holds_classifier(folder: Path) -> bool:
    """Whether a folder has such files."""
    return folder.is_dir() and any(files_of(folder, pattern) for pattern in (WHOLE, ROWS))


def read_classifier(folder: Path) -> Classifier:
    """All ranks' files; `check_rows` says whether they go together.

    Raises:
        ValueError: a file is missing or damaged.
    """
    whole = files_of(folder, WHOLE)
    found = whole or files_of(folder, ROWS)
    if not found:
        raise ValueError(f"{folder}: holds no checkpoint_gpu_*.pt and no rank_*_softmax_weight.pt")
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing or len(found) > MOST_RANKS:
        names = ", ".join(map(str, missing[:8]))
        raise ValueError(
            f"{folder}: files of {len(found)} ranks up to rank {max(found)}; missing: ranks {names}"
        )
    paths = [found[rank] for rank in range(len(found))]
    return of_whole(paths) if whole else of_rows(folder, paths)


def of_whole(paths: Sequence[Path]) -> Classifier:
    """checkpoint_gpu_{rank}.pt: backbone and schedule of rank 0, rows of each."""
    files = [read_file(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not isinstance(file, dict) or not isinstance(weight_in(file), Tensor):
            raise ValueError(f"{path}: holds no state_dict_softmax_fc with a tensor weight")
    iterations = [file.get("global_step") for file in files]
    if len(set(iterations)) > 1:
        raise ValueError(
            f"{paths[0].parent}: files of different steps: global_step is {iterations}; allowed: one save"
        )
    shards = [weight_in(file) for file in files]
    rows = [optimizer_of(path, file) for path, file in zip(paths, files, strict=True)]
    kind, states, age, notes = row_states(shards, [last for last, _, _ in rows])
    first, schedule = files[0], files[0].get("state_lr_scheduler")
    return Classifier(
        shards=shards,
        states=states,
        backbone=state_dict_in(paths[0], first.get("state_dict_backbone")),
        optimizer=rows[0][1],
        kind=kind,
        row_age=age,
        iterations=count_of(paths[0], iterations[0]),
        group=rows[0][2],
        schedule=schedule if isinstance(schedule, dict) else {},
        notes=notes,
    )


def weight_in(file: Mapping[str, Any]) -> Any:
    """The rows of one rank."""
    table = file.get("state_dict_softmax_fc")
    return table.get("weight") if isinstance(table, dict) else None


def count_of(path: Path, value: Any) -> int:
    """global_step.

    Raises:
        ValueError: it is no count.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{path}: global_step is {value!r:.100}; allowed: a whole number")
    return value


def optimizer_of(
    path: Path, file: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[int, Mapping[str, Any]], Mapping[str, Any]]:
    """State of the last parameter, the class rows; of the others, by number; the last group's numbers.

    Raises:
        ValueError: it is no state of an optimiser.
    """
    given = file.get("state_optimizer")
    if given is None:
        return {}, {}, {}
    try:
        groups, states = given["param_groups"], given["state"]
        numbers = [number for group in groups for number in group["params"]]
        others = {number: states[number] for number in numbers[:-1] if number in states}
        if not all(type(number) is int for number in numbers):
            raise TypeError("parameters are not numbered")
        return dict(states.get(numbers[-1], {})), others, dict(groups[-1])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: state_optimizer is no state of a torch optimiser") from error


def row_states(
    shards: Sequence[Tensor], given: Sequence[Mapping[str, Any]]
) -> tuple[str | None, dict[str, list[Tensor]], int, tuple[str, ...]]:
    """Kind of optimiser, its rows of every rank, their number of updates, and what is to be said."""
    for kind, names in STATES.items():
        if not all(isinstance(state.get(name), Tensor) for state in given for name in names):
            continue
        fits = all(
            state[name].shape == shard.shape
            for shard, state in zip(shards, given, strict=True)
            for name in names
        )
        if not fits:
            note = (
                "optimiser rows are those of the last step's sample alone (PartialFC of 2022 with a "
                "sample rate below 1): they start afresh"
            )
            return kind, {}, 0, (note,)
        states = {ours: [state[name] for state in given] for name, ours in names.items()}
        age = torch.as_tensor(given[0].get("step", 0))
        if age.numel() != 1 or not 0 <= float(age) < 2**53:
            raise ValueError("state_optimizer: step of the class rows is no count")
        return kind, states, int(age), ()
    return None, {}, 0, ("no optimiser state of the class rows: it starts afresh",)


def of_rows(folder: Path, paths: Sequence[Path]) -> Classifier:
    """rank_{rank}_softmax_weight.pt: rows, and momentum where it is beside."""
    shards = [tensor_in(path) for path in paths]
    beside = [path.with_name(f"{path.stem}_mom.pt") for path in paths]
    absent = [path.name for path in beside if not path.is_file()]
    if absent and len(absent) < len(beside):
        raise ValueError(f"{folder}: momentum of some ranks only; missing: {', '.join(absent[:8])}")
    momentum = [] if absent else [tensor_in(path) for path in beside]
    for path, shard, rows in zip(beside, shards, momentum, strict=False):
        if rows.shape != shard.shape:
            raise ValueError(
                f"{path}: shape {tuple(rows.shape)}; allowed: {tuple(shard.shape)}, as its weight"
            )
    nets = [folder / name for name in BACKBONES if (folder / name).is_file()]
    if not nets:
        raise ValueError(f"{folder}: no backbone beside the class rows; allowed: {BACKBONES}")
    return Classifier(
        shards=shards,
        states={"momentum": momentum} if momentum else {},
        backbone=state_dict_in(nets[0], read_file(nets[0])),
        kind="sgd",
        notes=(
            "these files hold neither the step nor the backbone's optimiser: the run begins at step 0 with "
            "trained rows" + (", their momentum" if momentum else "") + " and backbone",
        ),
    )


def tensor_in(path: Path) -> Tensor:
    """The one tensor of a file.

    Raises:
        ValueError: it holds something else.
    """
    found = read_file(path)
    if not isinstance(found, Tensor):
        raise ValueError(f"{path}: holds a {type(found).__name__}; allowed: one tensor")
    return found


def shard_sizes(num_classes: int, world: int) -> list[int]:
    """Classes of every rank as insightface cuts them: the first C mod W hold one more."""
    least, more = divmod(num_classes, world)
    return [least + (rank < more) for rank in range(world)]


def check_rows(folder: Path, classifier: Classifier, num_classes: int | None) -> None:
    """Raise ValueError unless the shards are those of one table.

    Args:
        folder: Where they come from.
        classifier: The files.
        num_classes: Classes that there should be; None where nobody knows.
    """
    shards = classifier.shards
    for rank, shard in enumerate(shards):
        if (
            shard.dim() != 2
            or not shard.is_floating_point()
            or shard.shape[1] != shards[0].shape[1]
        ):
            raise ValueError(
                f"{folder}: rank {rank}: rows of shape {tuple(shard.shape)} {shard.dtype}; allowed: "
                f"[classes, {shards[0].shape[-1]}] of floating point"
            )
    sizes, total = [len(shard) for shard in shards], classifier.num_classes
    if num_classes is not None and total != num_classes:
        more, less = total - num_classes, num_classes - total
        told = f"{more} more than there are" if more > 0 else f"{less} are missing"
        raise ValueError(
            f"{folder}: {len(shards)} shards hold {total} classes, the data set has {num_classes}: {told}"
            f"{lost_files(sizes, num_classes)}"
        )
    if sizes != shard_sizes(total, len(sizes)):
        raise ValueError(
            f"{folder}: shards of {sizes} classes; insightface cuts {total} classes over {len(sizes)} ranks "
            f"into {shard_sizes(total, len(sizes))}: files of different runs, or some are missing"
        )


def lost_files(sizes: list[int], num_classes: int) -> str:
    """Whether the last ranks' files are what is missing: ' (...)', or nothing."""
    for world in range(len(sizes) + 1, 8 * len(sizes) + 1):
        if shard_sizes(num_classes, world)[: len(sizes)] == sizes:
            return f" (these are the first {len(sizes)} of {world} ranks' files)"
    return ""
