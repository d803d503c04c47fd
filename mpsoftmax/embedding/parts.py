"""The parts of a job: which images each holds, which are done, and how they become one file.

    OUT.parts/manifest.json          what the job is: another job does not go on here
    OUT.parts/part-00000012.parquet  the embeddings of 1,024 consecutive images; renamed into place when whole
    OUT                              all parts, one after the other, in row groups of up to 8,192 rows

Parts are cut by number of images alone: neither ranks nor restarts move them.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpsoftmax.data.image_names import name_of
from mpsoftmax.data.image_set import IGNORE, ImageSet
from mpsoftmax.data.new_files import new_files

PART_IMAGES, GROUP_ROWS = 1024, 8192
KEY, SKIPPED_KEY = b"mpsoftmax", b"mpsoftmax.skipped"


@dataclass(frozen=True)
class Parts:
    """The parts of one output file.

    Attributes:
        out: The file to be.
        num_images: Images of the set.
        size: Images of a part.
    """

    out: Path
    num_images: int
    size: int = PART_IMAGES

    @property
    def folder(self) -> Path:
        """Where parts lie until they are one."""
        return self.out.with_name(self.out.name + ".parts")

    def __len__(self) -> int:
        return -(-self.num_images // self.size)

    def range(self, number: int) -> tuple[int, int]:
        """Images [first, last) of a part."""
        return number * self.size, min((number + 1) * self.size, self.num_images)

    def path(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:08d}.parquet"

    def open(self, manifest: Mapping[str, Any]) -> None:
        """Begin the job, or go on with it; by one rank.

        Raises:
            ValueError: the output exists or cannot be written, or the folder of parts belongs to another job;
                says what differs.
        """
        if os.path.lexists(self.out):
            raise ValueError(f"{self.out} exists already: remove it or choose another name")
        path = self.folder / "manifest.json"
        try:
            if not path.exists():
                self._begin(path, manifest)
                return
        except OSError as error:
            raise ValueError(
                f"{self.out}: cannot be written: {error.strerror}: {self.folder}; allowed: a file in a "
                "folder that can be written to"
            ) from error
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: damaged: {error}; remove {self.folder}") from error
        keys = {*begun, *manifest} if isinstance(begun, dict) else set()
        different = sorted(key for key in keys if begun.get(key) != manifest.get(key))
        if different or not keys:
            first = different[0] if different else "manifest"
            raise ValueError(
                f"{self.folder} was begun with {first} {begun.get(first) if keys else begun!r}, now it is "
                f"{manifest.get(first)}; allowed: the same model, data and options, or remove that folder"
            )

    def _begin(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with new_files(path) as (temporary,):
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there yet."""
        return [number for number in range(len(self)) if not self.path(number).exists()]

    def write(self, number: int, table: pa.Table) -> None:
        """One part, whole or not at all."""
        temporary = self.path(number).with_suffix(f".partial-{os.getpid()}")
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="none")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path(number))

    def join(self, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
        """All parts as one file, and what was skipped in a .skipped.json beside it; by one rank.

        Returns:
            (name, problem) of the images that were skipped.
        """
        skipped: list[tuple[str, str]] = []
        for number in range(len(self)):
            metadata = pq.read_schema(self.path(number)).metadata or {}
            skipped += [(name, why) for name, why in json.loads(metadata[SKIPPED_KEY])]
        described = pq.read_schema(self.path(0)).remove_metadata()
        whole = {**facts, "num_skipped": len(skipped)}
        described = described.with_metadata({KEY: json.dumps(whole)})
        listed = self.out.with_name(self.out.name + ".skipped.json")
        with new_files(listed, self.out) as (names, temporary):
            with pq.ParquetWriter(temporary, described, compression="zstd") as writer:
                for first in range(0, len(self), max(1, GROUP_ROWS // self.size)):
                    last = min(first + max(1, GROUP_ROWS // self.size), len(self))
                    tables = [self._read(number, described) for number in range(first, last)]
                    writer.write_table(pa.concat_tables(tables), row_group_size=GROUP_ROWS)
            if skipped:
                lines = [{"name": name, "problem": why} for name, why in skipped]
                names.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(self.folder)
        return skipped

    def _read(self, number: int, described: pa.Schema) -> pa.Table:
        with self.path(number).open("rb") as file:
            return pq.ParquetFile(file).read().cast(described)


def part_table(
    images: ImageSet,
    chosen: Sequence[int],
    unit: np.ndarray,
    norms: np.ndarray,
    skipped: Sequence[tuple[str, str]],
) -> pa.Table:
    """The rows of a part.

    Args:
        images: The set.
        chosen: Indices of the m images that were embedded.
        unit: float32 [m, D] unit embeddings.
        norms: float32 [m], their norms before.
        skipped: (name, problem) of those of the part that were not.
    """
    labels, names = images.labels[np.array(chosen, np.int64)], images.class_names
    known = [None if label == IGNORE else int(label) for label in labels]
    columns = {
        "name": pa.array([utf8(name_of(images, index)) for index in chosen], pa.string()),
        "label": pa.array(known, pa.int64()),
        "class_name": pa.array(
            [None if label is None else utf8(str(names[label])) for label in known], pa.string()
        ),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(unit.ravel(), pa.float32()), unit.shape[1]
        ),
        "norm": pa.array(norms, pa.float32()),
    }
    return pa.table(columns).replace_schema_metadata({SKIPPED_KEY: json.dumps(list(skipped))})


def utf8(name: str) -> str:
    r"""A file's name as text that Parquet can hold: bytes that are no UTF-8 as \x and their number."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
