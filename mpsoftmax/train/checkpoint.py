"""Checkpoints: one directory a step, loadable at any world size, committed by one rename.

    checkpoints/step-200/     tensors by torch.distributed.checkpoint, and state.json
    checkpoints/latest        symbolic link, moved atomically after the directory is complete

Row tensors are saved as DTensors, so another world size reads its own rows. Everything that is not a tensor
is JSON, and the tensors' index is read by an unpickler that knows only torch's metadata classes: a hostile
checkpoint runs nothing.
"""

import io
import json
import os
import pickle
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mpsoftmax.comm import Comm

FORMAT = 1
PREFIX = "step-"
METADATA_FILE = ".metadata"

ALLOWED_GLOBALS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
}


class MetadataUnpickler(pickle.Unpickler):
    """Reads the index of torch.distributed.checkpoint and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, if it is one of torch's metadata classes or dtypes."""
        if name in ALLOWED_GLOBALS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise ValueError(f"checkpoint metadata asks for {module}.{name}, which is not allowed")


class Reader(dcp.FileSystemReader):
    """FileSystemReader whose metadata is unpickled with an allow-list."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the checkpoint."""
        path = Path(self.path) / METADATA_FILE
        try:
            metadata = MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        except FileNotFoundError as error:
            raise ValueError(f"checkpoint {self.path}: not complete: no {METADATA_FILE}") from error
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError) as error:
            raise ValueError(
                f"checkpoint {self.path}: {METADATA_FILE} is damaged: {error}"
            ) from error
        if not isinstance(metadata, Metadata):
            raise ValueError(f"checkpoint {self.path}: {METADATA_FILE} is damaged")
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise ValueError(f"checkpoint {self.path}: {name} is not a tensor")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: RUN/checkpoints.
        comm: The ranks that save and load together; they have a process group, if only of one rank.
        keep: Newest checkpoints kept.
    """

    folder: Path
    comm: Comm
    keep: int = 3

    def latest(self) -> Path | None:
        """The directory `latest` points to; None where nothing was saved yet.

        Raises:
            ValueError: complete checkpoints exist but `latest` names none of them: starting over without a
                word would be worse than asking.
        """
        link = self.folder / "latest"
        if link.is_symlink() and (link / METADATA_FILE).exists():
            return link.resolve()
        complete = [path.name for _, path in self._saved() if (path / METADATA_FILE).exists()]
        if complete:
            raise ValueError(
                f"checkpoints: {self.folder} holds {', '.join(complete)}, but 'latest' is missing or names "
                f"none of them; allowed: a symbolic link to one (ln -s {complete[-1]} {link})"
            )
        return None

    def _saved(self) -> list[tuple[int, Path]]:
        """(step, directory) of every saved checkpoint, oldest first."""
        numbers = (
            (path.name.removeprefix(PREFIX), path) for path in self.folder.glob(f"{PREFIX}*")
        )
        return sorted((int(number), path) for number, path in numbers if number.isdigit())

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Write a checkpoint; collective. `state` must be JSON-ready and is taken from rank 0."""
        final = self.folder / f"{PREFIX}{step}"
        partial = self.folder / f"{PREFIX}{step}.partial"
        if self.comm.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.comm.barrier()
        writer = dcp.FileSystemWriter(partial, single_file_per_rank=True, sync_files=True)
        dcp.save(tensors, storage_writer=writer)
        if self.comm.rank == 0:
            write_json(partial / "state.json", {"format": FORMAT, "step": step, **state})
            if final.exists():  # a run that was resumed from an older checkpoint passes here again
                shutil.rmtree(final)
            os.replace(partial, final)
            sync_folder(self.folder)
            self._point_latest(final)
            sync_folder(self.folder)
            self._prune(step)
        self.comm.barrier()
        return final

    def _point_latest(self, final: Path) -> None:
        link = self.folder / "latest.new"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        os.replace(link, self.folder / "latest")

    def _prune(self, step: int) -> None:
        """Drop the oldest, unfinished ones, and those of a future that a resumed run has left behind."""
        saved = self._saved()
        stale = [path for number, path in saved if number > step]
        stale += [path for number, path in saved if number <= step][: -self.keep]
        for path in [*stale, *self.folder.glob(f"{PREFIX}*.partial")]:
            shutil.rmtree(path, ignore_errors=True)


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
        raise ValueError(
            f"{field}: {model}: neither a run folder with checkpoints/latest nor a checkpoint"
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
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {path}: state.json cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path}: state.json is not of format {FORMAT}")
    return state


def stored_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """Names, shapes and dtypes of the tensors in a checkpoint directory."""
    return dict(Reader(path).read_metadata().state_dict_metadata)  # type: ignore[arg-type]


def read_tensors(path: Path, wanted: dict[str, Tensor]) -> None:
    """Fill `wanted` (plain tensors or DTensors, by name) from a checkpoint, in place; collective.

    Raises:
        ValueError: a name is missing, or a shape differs.
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
    dcp.load(wanted, storage_reader=Reader(path))


def read_alone(path: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors whose names begin with `prefix`, without it, on the CPU; by one rank, not collective."""
    stored = {name: meta for name, meta in stored_tensors(path).items() if name.startswith(prefix)}
    tensors = {name: empty_like_stored(meta) for name, meta in stored.items()}
    with warnings.catch_warnings():  # that this is one process is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=Reader(path), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def empty_like_stored(stored: TensorStorageMetadata) -> Tensor:
    """A CPU tensor to load one stored tensor into."""
    return torch.empty(stored.size, dtype=stored.properties.dtype)
