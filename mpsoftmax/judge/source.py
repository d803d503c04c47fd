"""What is judged: a trained model, or embeddings that any model made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import torch.nn.functional as F
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config, load
from mpsoftmax.data.image_names import names_of
from mpsoftmax.data.image_set import IGNORE, ImageSet, Subset
from mpsoftmax.models import TrainedModel, open_model


class Source(Protocol):
    """Gives embeddings of images."""

    @property
    def config(self) -> Config:
        """Whose data settings open image sets."""
        ...

    def describe(self) -> dict[str, Any]:
        """Fields of the report."""
        ...

    def has(self, images: ImageSet) -> np.ndarray:
        """Which images it has embeddings of, bool [n]."""
        ...

    def embed(self, images: ImageSet, *, mirror: bool, normalise: bool, comm: Comm) -> Tensor:
        """Float32 [n, D] on the CPU, on every rank; collective."""
        ...


class ModelSource:
    """A trained backbone: embeds what it is given."""

    def __init__(self, model: TrainedModel) -> None:
        self.model = model

    @property
    def config(self) -> Config:
        """Of its training."""
        return self.model.config

    def describe(self) -> dict[str, Any]:
        """Checkpoint and step."""
        return {"model": str(self.model.source), "step": self.model.step}

    def has(self, images: ImageSet) -> np.ndarray:
        """All of them."""
        return np.ones(len(images), bool)

    def embed(self, images: ImageSet, *, mirror: bool, normalise: bool, comm: Comm) -> Tensor:
        """See Source."""
        return self.model.embed(images, mirror=mirror, normalise=normalise, comm=comm)


class GivenEmbeddings:
    """A Parquet file with the columns ``name``, ``embedding`` and perhaps ``label`` and ``norm``.

    Args:
        path: The file. ``name``: text, an image's path below the folder or in the tar that is judged, each
            once; ``embedding``: lists of numbers of one length; ``label``: whole numbers or text, null
            where not known; ``norm``: the length that an embedding had before it was made unit, as
            `mpsoftmax embed` writes it, which gives it that length again.
        skip_missing: Leave out images without an embedding, instead of refusing them.

    Attributes:
        names: of the rows.
        embeddings: float32 [n, D].
        labels: int64 [n], -1 where not known; None: of no row.

    Raises:
        ValueError: no such file, or not of these columns.
    """

    def __init__(self, path: str | Path, *, skip_missing: bool = False) -> None:
        self.path, self.skip_missing = Path(path), skip_missing
        self.config = load(None, ["train.steps=1"])  # its data section counts; nothing is trained
        table = _read(self.path)
        self.names: Sequence[str] = table["name"].to_pylist()
        self.embeddings = _vectors(self.path, table["embedding"])
        if "norm" in table.column_names:
            self.embeddings = F.normalize(self.embeddings) * _lengths(self.path, table["norm"])
        self.labels = None
        if "label" in table.column_names:
            self.labels = _numbered(table["label"])
        self._row = {name: row for row, name in enumerate(self.names)}
        if len(self._row) < len(self.names):
            raise ValueError(f"{self.path}: column name: a name occurs twice; allowed: once")

    def describe(self) -> dict[str, Any]:
        """The file."""
        return {"model": str(self.path), "step": None}

    def has(self, images: ImageSet) -> np.ndarray:
        """Which images it has embeddings of; all, or an error, without ``skip_missing``.

        Raises:
            ValueError: one is missing and missing ones are not skipped, or all are.
        """
        names = names_of(images)
        known = np.array([name in self._row for name in names], bool)
        if not known.any() or not (known.all() or self.skip_missing):
            lost = names[int(np.flatnonzero(~known)[0])]
            raise ValueError(
                f"{self.path}: column name: no embedding of {lost!r} ({int((~known).sum())} of"
                f" {len(known)} images have none; --skip-missing leaves them out, if not all are missing)"
            )
        return known

    def embed(self, images: ImageSet, *, mirror: bool, normalise: bool, comm: Comm) -> Tensor:
        """The rows of the images; what was done about mirror images was done when they were made."""
        rows = self.embeddings[[self._row[name] for name in names_of(images)]]
        return F.normalize(rows) if normalise else rows


def open_source(
    path: str, comm: Comm, *, trust_code: bool = False, skip_missing: bool = False
) -> Source:
    """A run folder, a checkpoint directory, or a .parquet file of embeddings; collective.

    Raises:
        ValueError: none of them, or a damaged one.
    """
    if path.endswith(".parquet"):
        return comm.together(lambda: GivenEmbeddings(path, skip_missing=skip_missing))
    return ModelSource(open_model(path, comm=comm, trust_code=trust_code))


def present(sources: Sequence[Source], images: ImageSet) -> np.ndarray:
    """Images that all sources have embeddings of, int64 [m], ascending.

    Raises:
        ValueError: a source lacks some and may not.
    """
    known = np.ones(len(images), bool)
    for source in sources:
        known &= source.has(images)
    if not known.any():
        raise ValueError("embeddings: no image that all of them have")
    return np.flatnonzero(known)


def part_of(images: ImageSet, rows: np.ndarray) -> ImageSet:
    """Some images of a set; the set itself for all of them."""
    if len(rows) == len(images):
        return images
    return Subset(images, rows.astype(np.int64), np.arange(len(images.class_names)))


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        schema = pyarrow.parquet.read_schema(path)
        missing = {"name", "embedding"} - set(schema.names)
        if missing:
            raise ValueError(
                f"{path}: columns name, embedding (and label, norm) expected, missing {sorted(missing)}"
            )
        known = ("name", "embedding", "label", "norm")
        columns = [name for name in known if name in schema.names]
        table = pyarrow.parquet.read_table(path, columns=columns).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: Parquet expected: {error}") from None
    for name in columns:
        if not len(table) or (name != "label" and table[name].null_count):
            raise ValueError(f"{path}: column {name}: values without nulls expected")
    kinds = [table["name"].type, *([table["label"].type] if "label" in columns else [])]
    texts = [pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds]
    if not texts[0] or not all(
        text or pa.types.is_integer(kind) for text, kind in zip(texts[1:], kinds[1:], strict=True)
    ):
        raise ValueError(f"{path}: text in column name, whole numbers or text in label expected")
    return table


def _numbered(column: pa.ChunkedArray) -> np.ndarray | None:
    """Labels as numbers from 0, -1 for null; None where all are null."""
    known = column.is_valid().to_numpy()
    labels = np.full(len(column), IGNORE, np.int64)
    values = column.drop_null().to_numpy(zero_copy_only=False)
    labels[known] = np.unique(values, return_inverse=True)[1].ravel()
    return labels if known.any() else None


def _vectors(path: Path, column: pa.ChunkedArray) -> Tensor:
    """Float32 [n, D] from a column of lists."""
    array = pa.concat_arrays(column.chunks)
    lists = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    if not lists and not pa.types.is_fixed_size_list(array.type):
        raise ValueError(f"{path}: column embedding: lists of numbers expected, found {array.type}")
    try:
        flat = array.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: column embedding: lists of numbers expected: {error}") from None
    lengths = np.diff(array.offsets.to_numpy()) if lists else np.array([array.type.list_size])
    if len(np.unique(lengths)) != 1 or not lengths[0] or not np.isfinite(flat).all():
        raise ValueError(
            f"{path}: column embedding: finite numbers, in lists of one length, expected"
        )
    return torch.from_numpy(flat.reshape(-1, int(lengths[0])).copy())


def _lengths(path: Path, column: pa.ChunkedArray) -> Tensor:
    """Float32 [n, 1] from a column of numbers."""
    try:
        lengths = column.cast(pa.float32(), safe=False).to_numpy()
    except pa.ArrowException as error:
        raise ValueError(f"{path}: column norm: numbers expected: {error}") from None
    if not np.isfinite(lengths).all() or (lengths < 0).any():
        raise ValueError(f"{path}: column norm: finite numbers, none negative, expected")
    return torch.from_numpy(lengths.copy())[:, None]
