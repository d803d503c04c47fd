"""The index of a checkpoint, `.metadata`, read as hostile: nothing it says is believed before it is checked.

torch.distributed.checkpoint pickles it. The unpickler here knows torch's metadata classes and nothing else;
what comes out must then describe tensors whose pieces lie inside files of the checkpoint, cover them once,
and are no larger than those files. The pieces themselves are read by torch.load(weights_only=True).
"""

import io
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from mpsoftmax.pickle_opcodes import VALUES, check_opcodes

METADATA_FILE = ".metadata"
MAX_INDEX_BYTES = 1 << 30

OPCODES = VALUES | {"NEWOBJ", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BINFLOAT"}

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
        raise ValueError(f"asks for {module}.{name}, which is not allowed")


class Reader(dcp.FileSystemReader):
    """FileSystemReader whose index is read by `read_index`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the checkpoint."""
        metadata = read_index(Path(self.path))
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def read_index(folder: Path) -> Metadata:
    """`.metadata` of a checkpoint directory, checked.

    Raises:
        ValueError: missing, damaged, or one that wants anything but tensors in files beside it.
    """
    path = folder / METADATA_FILE
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"larger than {MAX_INDEX_BYTES} bytes")
        data = path.read_bytes()
        check_opcodes(data, OPCODES)
        metadata = MetadataUnpickler(io.BytesIO(data)).load()
        check_index(metadata, folder)
    except FileNotFoundError as error:
        raise ValueError(f"checkpoint {folder}: not complete: no {METADATA_FILE}") from error
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise ValueError(f"checkpoint {folder}: {METADATA_FILE} is damaged: {error}") from error
    return metadata


def check_index(metadata: Any, folder: Path) -> None:
    """Raise ValueError unless everything in the index is of its type and fits the files beside it."""
    require(isinstance(metadata, Metadata), "no index of torch.distributed.checkpoint")
    tensors, places = metadata.state_dict_metadata, metadata.storage_data
    require(isinstance(tensors, dict) and isinstance(places, dict), "tensors or places missing")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    for index, place in places.items():
        check_place(index, place, sizes)
    claimed = 0
    stored = {(index.fqn, tuple(index.offset or ())): place for index, place in places.items()}
    for name, entry in tensors.items():
        check_tensor(name, entry)
        for chunk in entry.chunks:
            place = stored.get((name, tuple(chunk.offsets)))
            if place is None:
                raise ValueError(f"{name}: a piece is in no file")
            needed = math.prod(chunk.sizes) * entry.properties.dtype.itemsize
            require(needed <= place.length, f"{name}: a piece is larger than its place")
            claimed += needed
    require(claimed <= sum(sizes.values()), "the tensors are larger than the files")


def check_place(index: Any, place: Any, sizes: dict[str, int]) -> None:
    """Where a piece of a tensor lies: inside a file of the checkpoint, stored as it is."""
    good = isinstance(index, MetadataIndex) and isinstance(index.fqn, str)
    good = good and (index.offset is None or is_shape(index.offset))
    require(good, f"{index!r:.100} names no piece of a tensor")
    # A path that leads out of the directory is no name of a file in it.
    name = getattr(place, "relative_path", None)
    if not isinstance(name, str) or name not in sizes:
        raise ValueError(f"{index.fqn}: no file {name!r:.100} here")
    first, length = place.offset, place.length
    good = type(first) is int and type(length) is int and first >= 0 and length >= 0
    require(good and first + length <= sizes[name], f"{index.fqn}: its place is not within {name}")
    require(not place.transform_descriptors, f"{index.fqn}: is stored transformed")


def check_tensor(name: Any, entry: Any) -> None:
    """A tensor's shape, dtype and pieces, which cover it once."""
    require(isinstance(name, str), f"{name!r:.100} is not a name")
    require(isinstance(entry, TensorStorageMetadata), f"{name} is not a tensor")
    properties = entry.properties
    good = isinstance(properties, TensorProperties) and isinstance(properties.dtype, torch.dtype)
    require(good and is_shape(entry.size), f"{name}: no shape or dtype")
    require(isinstance(entry.chunks, list), f"{name}: no pieces")
    covered = 0
    for chunk in entry.chunks:
        good = isinstance(chunk, ChunkStorageMetadata)
        good = good and is_shape(chunk.offsets) and is_shape(chunk.sizes)
        good = good and len(chunk.offsets) == len(chunk.sizes) == len(entry.size)
        require(good, f"{name}: a piece has no place in the tensor")
        ends = [low + size for low, size in zip(chunk.offsets, chunk.sizes, strict=True)]
        inside = all(end <= size for end, size in zip(ends, entry.size, strict=True))
        require(inside, f"{name}: a piece is out of range")
        covered += math.prod(chunk.sizes)
    apart = not any(overlap(a, b) for a, b in itertools.combinations(entry.chunks, 2))
    require(apart and covered == math.prod(entry.size), f"{name}: its pieces do not cover it once")


def overlap(a: ChunkStorageMetadata, b: ChunkStorageMetadata) -> bool:
    """Whether two boxes of a tensor share an element."""
    return all(
        max(low, other) < min(low + size, other + length)
        for low, size, other, length in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    )


def is_shape(value: Any) -> bool:
    """Whether it is a torch.Size of lengths."""
    return isinstance(value, torch.Size) and all(type(n) is int and 0 <= n < 2**62 for n in value)


def require(good: bool, problem: str) -> None:
    """Raise ValueError with the problem unless it is good."""
    if not good:
        raise ValueError(problem)
