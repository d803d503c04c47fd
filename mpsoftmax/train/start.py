"""Starting from what another run has learned: its backbone, its class rows, or both.

Unlike resuming, everything else starts afresh: optimisers, schedule, position, order.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm, local_rows
from mpsoftmax.config import Config
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.weights import ClassCentres
from mpsoftmax.train.checkpoint import (
    check_undamaged,
    checkpoint_of,
    read_state,
    read_tensors,
    stored_tensors,
)
from mpsoftmax.train.class_matching import (
    OldRows,
    averaged,
    match_names,
    read_renamed,
    set_to_means,
)
from mpsoftmax.train.class_names import read_names
from mpsoftmax.train.state import HEAD, load_backbone, parts_to_load

ROWS_AT_ONCE = 65_536


def start_from(
    config: Config, net: nn.Module, head: ModelParallelSoftmax, comm: Comm, images: ImageSet
) -> list[str]:
    """Take what backbone.start_from and head.start_from name; collective.

    Returns:
        A line for each, for the log.

    Raises:
        ValueError: a path holds no checkpoint, or what it holds does not fit; on all ranks.
    """
    said = []
    for field, model in (
        ("backbone.start_from", config.backbone.start_from),
        ("head.start_from", config.head.start_from),
    ):
        if model is None:
            continue
        path = comm.together(lambda f=field, m=model: checkpoint_of(f, m, comm))
        check_undamaged(path, comm)
        state = comm.together(lambda p=path: read_state(p))
        done = ""
        try:
            if field.startswith("head") and config.head.new_rows is not None:
                done = load_named_rows(path, state["num_classes"], config, net, head, images)
            elif field.startswith("head"):
                load_class_rows(path, head, comm, state["num_classes"], state["world"])
            else:
                load_backbone(path, net)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
        said.append(f"{field.partition('.')[0]} starts from {path}, step {state['step']}{done}")
    return said


def of_fitting_length(head: ModelParallelSoftmax, rows: Tensor) -> Tensor:
    """Rows [n, D] ([n, K, D]); of unit length where they become means of unit features.

    Learned rows have lengths of their own, against which a batch's mean would hardly, or alone, count.
    """
    weights = head.weights
    unit = isinstance(weights, ClassCentres) and weights.features == "normalised"
    return nn.functional.normalize(rows.float(), dim=-1) if unit else rows


def load_class_rows(
    path: Path, head: ModelParallelSoftmax, comm: Comm, num_classes: int, saved_world: int
) -> None:
    """The class rows alone from a checkpoint, at any world size; collective.

    Class centres started so count as seen, and get the length of what they average. Of a mapped table, rows
    that were never touched stay initial.

    Raises:
        ValueError: it has another number of classes, or rows of another width.
    """
    if num_classes != head.num_classes:
        raise ValueError(
            f"checkpoint {path} has {num_classes} classes; allowed: {head.num_classes}, as data.train has"
        )
    stored = stored_tensors(path)
    parts = parts_to_load(stored, head, comm, saved_world)
    wanted = {
        HEAD + name: torch.empty_like(value)
        for name, value in parts.items()
        if name == "weight" or name.endswith((".weight", ".ids"))
    }
    read_tensors(path, wanted)
    for name in [name for name in wanted if name.endswith("weight")]:
        rows, num_centres = local_rows(wanted[name]), head.weights.num_centres
        classes = torch.arange(*head.local_range)
        ids = wanted.get(name.removesuffix("weight") + "ids")
        if ids is not None:  # of rows; those of a class follow each other
            classes = ids[::num_centres] // num_centres
            rows = rows.view(-1, num_centres, rows.shape[1]).squeeze(1)
        for low in range(0, len(classes), ROWS_AT_ONCE):
            some = slice(low, low + ROWS_AT_ONCE)
            head.load_rows(classes[some], of_fitting_length(head, rows[some]))


def load_named_rows(
    path: Path,
    num_classes: int,
    config: Config,
    net: nn.Module,
    head: ModelParallelSoftmax,
    images: ImageSet,
) -> str:
    """Class rows by name from a checkpoint of other classes, at any world size; collective.

    The net has the weights that head.new_rows: class_mean asks for already.

    Returns:
        What to say about it.

    Raises:
        ValueError: names are missing or occur twice, no class is the same, or rows have another width.
    """
    comm = head.comm
    matched = comm.together(
        lambda: match_names(
            read_names(path, num_classes), images.class_names, read_renamed(config.head.renamed)
        )
    )
    if not len(matched.pairs):
        raise ValueError(f"no class of checkpoint {path} has a name that data.train has")
    old, lengths, taken = OldRows(path, num_classes, comm), 0.0, 0
    of_pair = matched.pairs[:, 0].contiguous()
    targets = torch.unique_consecutive(of_pair)
    for low in range(0, len(targets), ROWS_AT_ONCE):
        some = targets[low : low + ROWS_AT_ONCE]
        first = int(torch.searchsorted(of_pair, some[0]))
        last = int(torch.searchsorted(of_pair, some[-1], right=True))
        rows = old.of(matched.pairs[first:last, 1])
        classes, rows = averaged(rows, of_pair[first:last])
        lengths += float(torch.linalg.vector_norm(rows, dim=-1).double().mean()) * len(rows)
        taken += len(rows)
        head.load_rows(classes, of_fitting_length(head, rows))
    made = 0
    if config.head.new_rows == "class_mean":
        length = lengths / taken if head.weights.learned else None
        made = set_to_means(config, images, net, head, matched.new, length)
    return (
        f": {len(targets)} classes by name, from {len(matched.pairs)} rows; {matched.num_left} old classes "
        f"left; of {len(matched.new)} new classes {made} begin as their mean, the others random"
    )
