"""Images in Parquet as the Hugging Face hub writes them: one file, a glob, or a folder of shards.

Column ``image`` is a struct {bytes, path} or plain binary; ``label`` an integer (ClassLabel) or text. Class
names come from the schema metadata under ``huggingface`` (or our own key, as in .arrow); text labels are
numbered by plain string sort; else classes are numbers. Shards are taken in order of their names.

A row cannot be read without its row group, so row groups are what is read and kept: the last
``cache_groups`` of them in each process. ``data.order: grouped`` draws samples so that a group is read once.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpsoftmax.data.arrow import CLASS_NAMES_KEY
from mpsoftmax.data.image_set import check_labels
from mpsoftmax.data.string_table import StringTable, numbered_classes

HUB_KEY = b"huggingface"
CACHE_GROUPS = 8
_OPEN_FILES = 32
# What pyarrow raises for damaged bytes.
_DAMAGE = (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError, OverflowError)


@dataclass(frozen=True)
class Columns:
    """Where image and label are.

    Attributes:
        image: Name of the image column.
        leaf: What to read of it: the column, or its part ``bytes``.
        label: Name of the label column.
        kind: Type of the labels.
        names: Class names by label, where the file states them.
    """

    image: str
    leaf: str
    label: str
    kind: str
    names: tuple[str, ...] | None


class ParquetImages:
    """Images of Parquet files; an ``ImageSet``.

    Attributes:
        labels: int64 [n].
        class_names: One name a class.
        group_starts: int64 [groups + 1], index of each row group's first sample, and n.
        cache_groups: Row groups kept in memory by each process.
        reads: Row groups read so far by this process.

    Args:
        paths: The files, in order.
        image_column: Its name; None: ``image``, or the only column of images.
        label_column: Its name; None: ``label``, or the only column of classes.
        cache_groups: Row groups kept in memory, at least 1.

    Raises:
        ValueError: Not such files, damaged, or files that disagree; names file and what was expected.
    """

    problems: tuple[str, ...] = ()

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        cache_groups: int = CACHE_GROUPS,
    ) -> None:
        if cache_groups < 1:
            raise ValueError(f"cache_groups: {cache_groups}; allowed: at least 1")
        self.paths, self.cache_groups, self.reads = tuple(paths), cache_groups, 0
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        labels: list[pa.ChunkedArray] = []
        sizes: list[int] = []
        places: list[tuple[int, int]] = []
        columns: list[Columns] = []
        for number, path in enumerate(self.paths):
            try:
                file = self._file(number)
                columns.append(find_columns(file.schema_arrow, path, image_column, label_column))
                labels.append(file.read(columns=[columns[-1].label]).column(0))
                groups = file.metadata.num_row_groups
                sizes += [file.metadata.row_group(k).num_rows for k in range(groups)]
                places += [(number, k) for k in range(groups)]
            except _DAMAGE as error:
                raise self._malformed(path, error) from None
        _check_agree(self.paths, columns)
        self._columns = columns[0]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        self.group_starts = np.cumsum([0, *sizes], dtype=np.int64)
        self.labels, self.class_names = self._classes(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> bytes:
        """Bytes of row ``index``.

        Raises:
            ValueError: The row group is damaged, or holds no bytes for this row.
        """
        row = range(len(self))[index]
        group = int(np.searchsorted(self.group_starts, row, side="right")) - 1
        found = self._group(group)[row - int(self.group_starts[group])].as_py()
        if found is None:
            raise ValueError(
                f"{self.name(index)}: image bytes expected in {self._columns.leaf!r}, found null (a path "
                "alone is not followed: embed the files when writing)"
            )
        return found

    def name(self, index: int) -> str:
        """``file.parquet: row ROW``."""
        row = range(len(self))[index]
        group = int(np.searchsorted(self.group_starts, row, side="right")) - 1
        number = int(self._places[group, 0])
        first = int(self.group_starts[np.searchsorted(self._places[:, 0], number)])
        return f"{self.paths[number]}: row {row - first}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_cache": OrderedDict(), "reads": 0}

    def _file(self, number: int) -> pq.ParquetFile:
        """A shard, opened; the last few stay open, since a footer is parsed anew each time."""
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        if not self.paths[number].is_file():
            raise ValueError(f"{self.paths[number]}: no such file")
        while len(self._files) >= _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        self._files[number] = pq.ParquetFile(self.paths[number], page_checksum_verification=True)
        return self._files[number]

    def _group(self, group: int) -> pa.ChunkedArray:
        """The image bytes of a row group."""
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        number, inner = self._places[group].tolist()
        try:
            table = self._file(number).read_row_group(
                inner, columns=[self._columns.leaf], use_threads=False
            )
            images = table.column(0)
            if pa.types.is_struct(images.type):
                images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks])
            images.validate(full=True)
        except _DAMAGE as error:
            raise self._malformed(self.paths[number], error, f"row group {inner}") from None
        if len(images) != self.group_starts[group + 1] - self.group_starts[group]:
            raise ValueError(f"{self.paths[number]}: row group {inner}: changed while being read")
        self.reads += 1
        while len(self._cache) >= self.cache_groups:
            self._cache.popitem(last=False)
        self._cache[group] = images
        return images

    def _classes(self, columns: Iterable[pa.ChunkedArray]) -> tuple[np.ndarray, Sequence[str]]:
        """Labels int64 [n] and class names of all files."""
        values = pa.chunked_array([chunk for column in columns for chunk in column.chunks])
        where = f"{self.paths[0]}: column {self._columns.label!r}"
        if not len(values):
            raise ValueError(f"{self.paths[0]}: holds no images")
        if values.null_count:
            raise ValueError(f"{where}: labels without nulls expected, found {values.null_count}")
        if pa.types.is_integer(values.type):
            stored = values.to_numpy()
            if int(stored.max()) >= 2**63:  # would wrap round to -1, which is to ignore an image
                raise ValueError(f"{where}: label {stored.max()}; allowed: class numbers")
            labels = stored.astype(np.int64)
            if self._columns.names is not None:
                return labels, StringTable(self._columns.names)
            return labels, numbered_classes(labels, where)
        texts = values.cast(pa.large_string()).combine_chunks().dictionary_encode()
        found = texts.dictionary.to_pylist()
        order = sorted(range(len(found)), key=found.__getitem__)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return place[texts.indices.to_numpy()], StringTable(found[k] for k in order)

    def _malformed(
        self, path: Path, error: BaseException, where: str = "Parquet file"
    ) -> ValueError:
        return ValueError(f"{path}: {where} expected, damaged or of another format: {error}")


def find_columns(
    schema: pa.Schema, path: Path, image_column: str | None, label_column: str | None
) -> Columns:
    """The columns of image and label, and what the metadata say about the classes.

    Raises:
        ValueError: There is none, there are several, or they are of another type.
    """
    features = _features(schema, path)
    images = [field.name for field in schema if _holds_images(field.type)]
    stated = [name for name, what in features.items() if what.get("_type") == "ClassLabel"]
    classes = stated or [field.name for field in schema if pa.types.is_integer(field.type)]
    image = _choose(path, schema, "image", image_column, images)
    label = _choose(path, schema, "label", label_column, classes)
    kind = schema.field(image).type
    if not _holds_images(kind):
        raise ValueError(
            f"{path}: column {image!r}: binary, or a struct with binary 'bytes', expected, found {kind}"
        )
    of_label = schema.field(label).type
    if not (pa.types.is_integer(of_label) or _is_text(of_label)):
        raise ValueError(f"{path}: column {label!r}: integer or text expected, found {of_label}")
    names = features.get(label, {}).get("names")
    if names is None and CLASS_NAMES_KEY in (schema.metadata or {}):
        names = _json(schema.metadata[CLASS_NAMES_KEY], path, CLASS_NAMES_KEY)
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"{path}: a list of class names expected in the schema metadata")
    leaf = f"{image}.bytes" if pa.types.is_struct(kind) else image
    return Columns(image, leaf, label, str(of_label), None if names is None else tuple(names))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _choose(path: Path, schema: pa.Schema, what: str, named: str | None, fitting: list[str]) -> str:
    """The column asked for, the one of the usual name, or the only one that fits."""
    wanted = named or (what if what in schema.names else None)
    if wanted is None and len(fitting) == 1:
        wanted = fitting[0]
    if wanted is None or schema.names.count(wanted) != 1:
        raise ValueError(
            f"{path}: one column {named or what!r} expected, columns are {', '.join(schema.names)}; "
            f"say which with {what}_column"
        )
    return wanted


def _features(schema: pa.Schema, path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The hub's description of each column."""
    raw = (schema.metadata or {}).get(HUB_KEY)
    tree: Any = {} if raw is None else _json(raw, path, HUB_KEY)
    for key in ("info", "features"):
        tree = tree.get(key, {}) if isinstance(tree, dict) else {}
    if not isinstance(tree, dict):
        return {}
    return {name: what for name, what in tree.items() if isinstance(what, dict)}


def _json(raw: bytes, path: Path, key: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: JSON expected in metadata {key.decode()!r}: {error}") from None


def _check_agree(paths: Sequence[Path], columns: Sequence[Columns]) -> None:
    """Shards of one set have the same columns and class names."""
    for path, found in zip(paths, columns, strict=True):
        if found != columns[0]:
            raise ValueError(
                f"{path}: columns and class names of {paths[0]} expected: the files are not shards of "
                "one set"
            )


def open_parquet(
    paths: Sequence[str | os.PathLike[str]], *, check: bool = True, **options: Any
) -> ParquetImages:
    """Open Parquet files as one set.

    Args:
        paths: The files, in order; see ``parquet_shards`` for a folder.
        check: Refuse labels out of range; ``inspect`` reports them instead.
        **options: As ``ParquetImages``.

    Raises:
        ValueError: Malformed files, or a label that is no class.
    """
    images = ParquetImages([Path(path) for path in paths], **options)
    if check:
        check_labels(images.labels, len(images.class_names), images.name, str(images.paths[0]))
    return images
