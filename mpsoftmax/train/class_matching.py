"""Class rows from a run with other classes: matched by name, averaged where several become one, or made.

head.start_from with head.new_rows. A table renames, merges or drops classes of the old run:

    old,new
    anna_k,anna
    anna_2,anna
    unknown,

The rows of anna_k and anna_2 are averaged for anna, and that of unknown is left, although the new data set
may have a class of that name. A class that the table does not name keeps its own.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm, local_rows
from mpsoftmax.config import Config
from mpsoftmax.data.image_set import ImageSet, Subset
from mpsoftmax.data.union import name_digests
from mpsoftmax.head.class_table import local_range
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.merged import MergedClasses, shared_rows
from mpsoftmax.train.centres import DataPass
from mpsoftmax.train.checkpoint import empty_like_stored, read_tensors, stored_tensors

RENAMED_KEY = "head.renamed"
WEIGHT, MERGED = "head.weight", "head.merged"


@dataclass(frozen=True)
class Matching:
    """Which old rows become which new ones.

    Attributes:
        pairs: int64 [M, 2] (new class, old class), sorted.
        new: int64 [N] classes without a row of old, ascending.
        num_left: Old classes that no new one takes.
    """

    pairs: Tensor
    new: Tensor
    num_left: int


def match_names(old: Sequence[str], new: Sequence[str], renamed: dict[str, str]) -> Matching:
    """Match classes by name.

    Args:
        old: Names of the old run's classes.
        new: Names of this run's.
        renamed: Old name -> new name, or "" for one that is left.

    Raises:
        ValueError: a name occurs twice, or the table names what is nowhere.
    """
    check_distinct("checkpoint", old)
    check_distinct("data.train", new)
    if renamed:
        unknown = sorted(set(renamed) - set(old))
        if unknown:
            raise ValueError(f"{RENAMED_KEY}: {unknown[0]!r} is no class of the old run")
        missing = sorted(set(renamed.values()) - set(new) - {""})
        if missing:
            raise ValueError(f"{RENAMED_KEY}: {missing[0]!r} is no class of data.train")
    called = [renamed.get(name, name) for name in old] if renamed else old
    ours, theirs = name_digests(new), name_digests(called)
    order = np.argsort(ours)
    place = np.searchsorted(ours[order], theirs).clip(max=len(ours) - 1)
    found = ours[order][place] == theirs
    if renamed:  # a name that is left is "", which a class may be called as well
        found &= np.array([name != "" for name in called])
    pairs = np.stack([order[place[found]], np.flatnonzero(found)], axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    without = np.setdiff1d(np.arange(len(new)), pairs[:, 0])
    return Matching(
        torch.from_numpy(pairs.astype(np.int64)),
        torch.from_numpy(without.astype(np.int64)),
        int((~found).sum()),
    )


def check_distinct(what: str, names: Sequence[str]) -> None:
    """Raise ValueError where two classes have one name."""
    digests = name_digests(names)
    values, counts = np.unique(digests, return_counts=True)
    if len(values) < len(digests):
        twice = int(np.flatnonzero(np.isin(digests, values[counts > 1]))[0])
        raise ValueError(
            f"head.start_from: two classes of {what} are named {names[twice]!r}; allowed: names that "
            "differ"
        )


def read_renamed(path: str | None) -> dict[str, str]:
    """head.renamed: old name -> new name.

    Raises:
        ValueError: the file cannot be read, or names an old class twice; names file and line.
    """
    if path is None:
        return {}
    where = f"{RENAMED_KEY}: {path}"
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            lines = list(reader)
    except (OSError, csv.Error) as error:
        raise ValueError(f"{where}: cannot be read: {error}") from error
    if not {"old", "new"} <= set(reader.fieldnames or ()):
        raise ValueError(f"{where}: columns {reader.fieldnames}; expected old,new")
    table: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        name = line["old"]
        if not name or name in table or line["new"] is None:
            raise ValueError(f"{where}: line {number}: old={name!r}; allowed: every old name once")
        table[name] = line["new"]
    return table


class OldRows:
    """Class rows of a checkpoint, every rank with its share of them; collective.

    Args:
        path: The checkpoint directory.
        num_classes: Its classes.
        comm: The ranks.

    Raises:
        ValueError: it holds only touched rows.
    """

    def __init__(self, path: Path, num_classes: int, comm: Comm) -> None:
        stored = stored_tensors(path)
        if WEIGHT not in stored:
            raise ValueError(
                f"checkpoint {path} holds touched rows only (head.storage: mapped), or none; allowed with "
                "head.new_rows: one with all rows"
            )
        self._comm = comm
        self._start, self._stop = local_range(num_classes, comm.world, comm.rank)
        kind = stored[WEIGHT]
        local = torch.empty(
            self._stop - self._start,
            *kind.size[1:],
            dtype=kind.properties.dtype,
            device=comm.device,
        )
        wanted = {WEIGHT: comm.shard_rows(local, num_classes)}
        if MERGED in stored:
            wanted[MERGED] = empty_like_stored(stored[MERGED])
        read_tensors(path, wanted)
        self._rows = local_rows(wanted[WEIGHT])
        self._merged = MergedClasses(comm.device)
        if MERGED in wanted:
            self._merged.set(wanted[MERGED])

    def of(self, ids: Tensor) -> Tensor:
        """Rows [n, ...] of old classes int64 [n], float32, on every rank; collective."""
        ids = self._merged.canonical(ids.to(self._comm.device))
        mine = (ids >= self._start) & (ids < self._stop)
        rows = self._rows.new_zeros(len(ids), *self._rows.shape[1:], dtype=torch.float32)
        rows[mine] = self._rows[ids[mine] - self._start].float()
        return self._comm.all_reduce_sum(rows)


def averaged(rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """New classes int64 [m], ascending, and a row for each: the mean direction of its old rows [n, ...].

    `classes` int64 [n] are the new classes of the rows, sorted.
    """
    groups, place = torch.unique_consecutive(classes, return_inverse=True)
    first = torch.searchsorted(classes, groups)
    seen = torch.ones(len(classes), dtype=torch.bool, device=rows.device)
    shared, known = shared_rows(rows, seen, place.to(rows.device), first.to(rows.device))
    return groups[known.cpu()], shared[known]


def images_of(images: ImageSet, classes: Tensor) -> ImageSet:
    """The images of some classes; their labels stay."""
    indices = np.flatnonzero(np.isin(images.labels, classes.numpy())).astype(np.int64)
    return Subset(images, indices, np.arange(len(images.class_names), dtype=np.int64))


def set_to_means(
    config: Config,
    images: ImageSet,
    net: nn.Module,
    head: ModelParallelSoftmax,
    classes: Tensor,
    length: float | None,
) -> int:
    """New classes get the mean feature direction of their images by the net as it is; collective.

    Args:
        config: How images are read.
        images: This run's.
        net: The bare backbone.
        head: Whose rows.
        classes: int64 [N].
        length: Of the rows; None: of the mean itself.

    Returns:
        How many had images that give a direction; the others stay random.
    """
    device = next(net.parameters()).device
    some = images_of(images, classes)
    if not len(some):
        return 0
    means = DataPass(config, some, head.comm, device).class_means(net, head, by_label=True)
    local, rows = means.means()
    usable = torch.linalg.vector_norm(rows, dim=1) > 1e-6
    local, rows = local[usable], rows[usable]
    if length is not None:
        rows = nn.functional.normalize(rows, dim=1) * length
    centres = head.weights.num_centres
    if centres > 1:
        rows = rows[:, None].expand(-1, centres, -1)
    head.load_rows(local + head.local_range[0], rows)
    return sum(head.comm.share(int(usable.sum())))
