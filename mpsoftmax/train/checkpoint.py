"""Checkpoints: one directory a step, loadable at any world size, committed by one rename.

    checkpoints/step-200/     tensors by torch.distributed.checkpoint, state.json, and a sum of every file
    checkpoints/latest        symbolic link, moved atomically after the directory is complete

Row tensors are saved as DTensors, so another world size reads its own rows. Everything that is not a tensor
is JSON, and the tensors' index is read as hostile (checkpoint_index.py): a hostile checkpoint runs nothing.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mpsoftmax.comm import AgreedError, Comm
from mpsoftmax.data.near_names import near_name
from mpsoftmax.train.checkpoint_index import METADATA_FILE, Reader, read_index
from mpsoftmax.train.sums import SUMS_FILE, Sums, damage, sums_of

FORMAT = 2
FORMATS = (1, FORMAT)
"""1: without sums."""
PREFIX = "step-"
LEAST = {"step": 0, "samples": 0, "world": 1, "num_classes": 1}
"""Counts in state.json."""
OTHERS = {
    "config": dict,
    "data": dict | None,
    "linking": list | None,
    "unevaluated": bool | None,
    "skipped": dict | None,
    "loss_scale": dict | None,
}
"""What else it holds; those that may be null need not be there."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: RUN/checkpoints.
        comm: The ranks that save and load together; one process needs no process group.
        keep: Newest checkpoints kept.

    Attributes:
        notes: What is to be said about checkpoints that were found damaged, in order.
    """

    def __init__(self, folder: Path, comm: Comm, keep: int = 3) -> None:
        self.folder, self.comm, self.keep = folder, comm, keep
        self.notes: list[str] = []

    def latest(self) -> Path | None:
        """The directory `latest` points to; None where nothing was saved yet.

        Raises:
            ValueError: complete checkpoints exist but `latest` names none of them: starting over without a
                word would be worse than asking.
        """
        link = self.folder / "latest"
        if link.is_symlink() and (link / METADATA_FILE).exists():
            return link.resolve()
        complete = [
            path.name for _, path in saved_in(self.folder) if (path / METADATA_FILE).exists()
        ]
        if complete:
            raise ValueError(
                f"checkpoints: {self.folder} holds {', '.join(complete)}, but 'latest' is missing or names "
                f"none of them; allowed: a symbolic link to one (ln -s {complete[-1]} {link})"
            )
        return None

    def last_good(self, newest: Path) -> Path:
        """`newest`, or where it is damaged the newest undamaged one before it; collective.

        What was passed over is told in `notes`, and `latest` is moved to what was found.

        Raises:
            ValueError: all of them are damaged; says how.
        """
        names = [path.name for _, path in reversed(saved_in(self.folder))]
        names = self.comm.share(names)[0]
        if newest.name in names:
            names = names[names.index(newest.name) + 1 :]
        for name in [newest.name, *names]:
            path = self.folder / name
            found = damage_together(path, self.comm)
            if not found:
                if path != newest:
                    self.notes.append(f"falling back to {path}")
                    self.comm.together(lambda path=path: self._point_latest_once(path))
                return path
            self.notes.append(f"checkpoint {path} is damaged: {'; '.join(found)}")
        raise AgreedError(
            f"{'; '.join(self.notes)}; allowed: an undamaged checkpoint (none is left in {self.folder}), or "
            "a new run.dir"
        )

    def _point_latest_once(self, path: Path) -> None:
        if self.comm.rank == 0:
            self._point_latest(path)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Write a checkpoint; collective. `state` must be JSON-ready and is taken from rank 0.

        Raises:
            ValueError: it could not be written (a full disk); on all ranks, the earlier ones are whole and
                `latest` is as it was.
        """
        final = self.folder / f"{PREFIX}{step}"
        partial = self.folder / f"{PREFIX}{step}.partial"
        try:
            self._on_rank_0(lambda: make_empty(partial))
            self._write_tensors(partial, tensors)
            sums = self.comm.together(lambda: sums_of(written_by(partial, self.comm.rank)))
            merged = {name: entry for part in self.comm.share(sums) for name, entry in part.items()}
            whole = {"format": FORMAT, "step": step, **state}
            self._on_rank_0(lambda: self._complete(partial, final, whole, merged))
        except AgreedError as error:
            if self.comm.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise AgreedError(f"checkpoint {final} was given up: {error}") from error
        if self.comm.rank == 0:
            self._prune(step)
        return final

    def _on_rank_0(self, action: Callable[[], None]) -> None:
        """Raises on all ranks what rank 0 met."""
        self.comm.together(lambda: action() if self.comm.rank == 0 else None)

    def _write_tensors(self, partial: Path, tensors: dict[str, Tensor]) -> None:
        writer = dcp.FileSystemWriter(partial, single_file_per_rank=True, sync_files=True)
        alone = not self.comm.connected
        meant = one_process_is_meant() if alone else contextlib.nullcontext()
        try:
            with self.comm.naming(f"saving {partial.name}"), meant:
                dcp.save(
                    tensors, storage_writer=writer, process_group=self.comm.group, no_dist=alone
                )
        except CheckpointException as error:
            raise AgreedError(told(error)) from error

    def _complete(self, partial: Path, final: Path, state: dict[str, Any], sums: Sums) -> None:
        """Make what was written a checkpoint: from the rename on it counts."""
        write_json(partial / "state.json", state)
        write_json(partial / SUMS_FILE, {"files": {**sums, **sums_of([partial / "state.json"])}})
        sync_folder(partial)
        if final.exists():  # a run that was resumed from an older checkpoint passes here again
            shutil.rmtree(final)
        os.replace(partial, final)
        sync_folder(self.folder)
        self._point_latest(final)
        sync_folder(self.folder)

    def _point_latest(self, final: Path) -> None:
        link = self.folder / "latest.new"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        os.replace(link, self.folder / "latest")

    def _prune(self, step: int) -> None:
        """Drop the oldest, unfinished ones, and those of a future that a resumed run has left behind."""
        saved = saved_in(self.folder)
        stale = [path for number, path in saved if number > step]
        stale += [path for number, path in saved if number <= step][: -self.keep]
        for path in [*stale, *self.folder.glob(f"{PREFIX}*.partial")]:
            shutil.rmtree(path, ignore_errors=True)


def saved_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every saved checkpoint below RUN/checkpoints, oldest first."""
    numbers = ((path.name.removeprefix(PREFIX), path) for path in folder.glob(f"{PREFIX}*"))
    return sorted((int(number), path) for number, path in numbers if number.isdigit())


def make_empty(folder: Path) -> None:
    """A new directory, in place of what a broken save has left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def written_by(folder: Path, rank: int) -> list[Path]:
    """Files of a checkpoint that this rank wrote; rank 0's are all that no other rank's name claims."""
    files = sorted(folder.iterdir())
    mine = [path for path in files if path.name.startswith(f"__{rank}_")]
    return mine if rank else mine + [path for path in files if not path.name.startswith("__")]


def told(error: CheckpointException) -> str:
    """What the first rank that failed met, in one line."""
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {type(cause).__name__}: {' '.join(str(cause).split())}"


def damage_together(path: Path, comm: Comm) -> list[str]:
    """What is wrong with a checkpoint, one line each, the same on all ranks; collective.

    Each rank reads a share of the files.
    """
    own = damage_of(path, comm.rank, comm.world)
    lines = [line for part in comm.share(own) for line in part]
    return list(dict.fromkeys(lines))


def damage_of(path: Path, rank: int = 0, world: int = 1) -> list[str]:
    """What is wrong with a rank's share of a checkpoint's files; format 1, without sums, is as it is."""
    if (path / SUMS_FILE).exists():
        return damage(path, rank, world)
    try:
        return [] if read_state(path)["format"] == 1 else [f"{SUMS_FILE} is missing"]
    except ValueError as error:
        return [str(error)]


def check_undamaged(path: Path, comm: Comm) -> None:
    """Raise ValueError, on all ranks, where a checkpoint is damaged; says how; collective."""
    found = damage_together(path, comm)
    if found:
        raise AgreedError(f"checkpoint {path} is damaged: {'; '.join(found)}")


def checkpoint_of(field: str, model: str, comm: Comm) -> Path:
    """The checkpoint directory meant by a run folder or by itself.

    Raises:
        ValueError: neither; names the field.
    """
    path = Path(model)
    if (path / "state.json").is_file():
        return path
    latest = Checkpoints(path / "checkpoints", comm).latest()
    if latest is None:
        if not path.exists():
            raise ValueError(f"{field}: {model}: no such folder{near_name(path)}")
        hint = ""
        if path.suffix.lower() in (".pt", ".pth"):
            hint = f"; for arcface_torch's .pt/.pth: mpsoftmax convert {model} MODEL"
        raise ValueError(
            f"{field}: {model}: neither a run folder with checkpoints/latest nor a checkpoint{hint}"
        )
    return latest


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a directory are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON and wait until it is on disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint directory.

    Raises:
        ValueError: missing, damaged, or of another format.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint {path}: state.json cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") not in FORMATS:
        raise ValueError(f"checkpoint {path}: state.json is of no format known here: {FORMATS}")
    for field, least in LEAST.items():
        value = state.get(field)
        if type(value) is not int or value < least:
            raise ValueError(
                f"checkpoint {path}: state.json: {field}: {value!r:.100}; allowed: whole, from {least}"
            )
    for field, kind in OTHERS.items():
        if not isinstance(state.get(field), kind):
            raise ValueError(f"checkpoint {path}: state.json: {field} is damaged")
    data = state.get("data")
    if data is not None and type(data.get("num_classes")) is not int:
        raise ValueError(f"checkpoint {path}: state.json: data is damaged")
    return state


def stored_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """Names, shapes and dtypes of the tensors in a checkpoint directory."""
    return dict(read_index(path).state_dict_metadata)  # type: ignore[arg-type]


def read_tensors(path: Path, wanted: dict[str, Tensor]) -> None:
    """Fill `wanted` (plain tensors or DTensors, by name) from a checkpoint, in place; collective.

    Raises:
        ValueError: a name is missing, a shape differs, or a file is damaged; on all ranks.
    """
    stored = stored_tensors(path)
    for name, tensor in wanted.items():
        if name not in stored:
            raise ValueError(f"checkpoint {path}: holds no {name}")
        if stored[name].size != tensor.shape:
            raise ValueError(
                f"checkpoint {path}: {name} has shape {tuple(stored[name].size)}; this run has "
                f"{tuple(tensor.shape)}"
            )
    alone = not Comm().connected
    try:
        with one_process_is_meant() if alone else contextlib.nullcontext():
            dcp.load(wanted, storage_reader=Reader(path), no_dist=alone)
    except CheckpointException as error:
        raise AgreedError(f"checkpoint {path}: {told(error)}") from error


def read_alone(path: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors whose names begin with `prefix`, without it, on the CPU; by one rank, not collective."""
    stored = {name: meta for name, meta in stored_tensors(path).items() if name.startswith(prefix)}
    tensors = {name: empty_like_stored(meta) for name, meta in stored.items()}
    with one_process_is_meant():
        dcp.load(tensors, storage_reader=Reader(path), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


@contextlib.contextmanager
def one_process_is_meant() -> Iterator[None]:
    """Torch warns where it saves or loads without a process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def empty_like_stored(stored: TensorStorageMetadata) -> Tensor:
    """A CPU tensor to load one stored tensor into."""
    return torch.empty(stored.size, dtype=stored.properties.dtype)
