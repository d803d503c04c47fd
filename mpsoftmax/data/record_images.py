"""Image sets in RecordIO: InsightFace style and im2rec style, read and written without MXNet.

InsightFace style: images under keys 1..N, then under key 0 a header record without payload
(labels [N+1, N+1+M]), then one record without payload per identity (labels [first image key, one
past the last]). im2rec style: every record is an image, keys from 0.

Reading trusts the index and the bytes. **The numbers in header and identity records are float32,
wrong above 2^24 = 16,777,216, and are never used to find images**: images are the records with a
payload. The numbers are compared, where float32 can be exact, and a difference is a problem listed
for ``mpsoftmax inspect``. Style: key 0 with a label vector and no payload means InsightFace
style; otherwise every record is an image. The class is label element 0.

Images come in the order of the index (the order written). Class names are not part of the format:
``<stem>.classes.json`` beside the .rec, a JSON list, carries them when this package wrote it;
otherwise they are zero-padded numbers. The number of classes is that of the names file, of
``property`` (for ``train.rec``), or the largest label plus one.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mpsoftmax.data.image_set import check_labels
from mpsoftmax.data.record_header import read_bodies
from mpsoftmax.data.record_index import read_index, scan_index
from mpsoftmax.data.record_io import (
    MAX_LABEL,
    RecordFile,
    unpack_body,
)
from mpsoftmax.data.string_table import NumberNames, StringTable


@dataclass(frozen=True, eq=False)
class RecordImages:
    """Images of a .rec file; an ``ImageSet``.

    Attributes:
        records: The file.
        style: ``"insightface"`` or ``"im2rec"``.
        keys: int64 [n], record key of each image.
        offsets: int64 [n], byte offset of each image's record.
        labels: int64 [n].
        class_names: One name a class.
        problems: Where header, identities, index and ``property`` disagree.
    """

    records: RecordFile
    style: Literal["insightface", "im2rec"]
    keys: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> bytes:
        """The payload of the image's record."""
        body = self.records.read(int(self.offsets[index]))
        return body[unpack_body(body, self.name(index))[1] :]

    def name(self, index: int) -> str:
        """``file.rec: record KEY (offset BYTES)``."""
        return f"{self.records.path}: record {self.keys[index]} (offset {self.offsets[index]})"


def open_records(
    path: str | os.PathLike[str], *, allow_unindexed: bool = False, check: bool = True
) -> RecordImages:
    """Open a .rec file with the .idx beside it; without an .idx the file is scanned.

    Every record's header is read once (vectorised), so a damaged file is refused here.

    Args:
        path: The .rec file.
        allow_unindexed: Accept an index that leaves out records (a chosen part of a set).
        check: Refuse labels out of range; ``inspect`` reports them instead.

    Raises:
        ValueError: Malformed or truncated file, index or side file, or a label that is no class.
    """
    records = RecordFile(path)
    idx_path = records.path.with_suffix(".idx")
    indexed = idx_path.exists()
    keys, offsets = read_index(idx_path) if indexed else scan_index(records)
    bodies = read_bodies(records, keys, offsets)
    if bodies.num_unindexed and not allow_unindexed:
        raise ValueError(
            f"{idx_path}: {bodies.num_unindexed} records of {records.path} are not in the index;"
            " remove the index to have it rebuilt, or choose allow_unindexed to read a part"
        )
    bare = bodies.is_vector & (bodies.payload_bytes == 0)
    # A scan cannot know keys: there the header is the first bare record behind the images.
    header = np.flatnonzero(bare & (keys == 0)) if indexed else np.flatnonzero(bare)[:1]
    if bare.any() and not len(header):
        lost = int(np.flatnonzero(bare)[0])
        raise ValueError(
            f"{records.path}: record {keys[lost]} (offset {offsets[lost]}): an image expected after"
            " its label vector (an identity record? then the header under key 0 is missing)"
        )
    is_image = ~bare if len(header) else np.ones(len(keys), dtype=bool)
    if not is_image.any():
        raise ValueError(f"{records.path}: holds no images")
    labels = _class_labels(bodies.label[is_image], records, keys[is_image])
    names, problems = _class_names(records.path, labels)
    if len(header):
        if not indexed:
            keys = _insightface_keys(is_image)
        problems += _header_problems(records, offsets, header[0], is_image, bare)
    images = RecordImages(
        records=records,
        style="insightface" if len(header) else "im2rec",
        keys=keys[is_image],
        offsets=offsets[is_image],
        labels=labels,
        class_names=names,
        problems=tuple(problems),
    )
    if check:
        check_labels(labels, len(names), images.name, str(records.path))
    return images


def _class_labels(values: np.ndarray, records: RecordFile, keys: np.ndarray) -> np.ndarray:
    """int64 labels from float32; refuses what is no integer or not exact."""
    whole = np.isfinite(values) & (np.abs(values) <= MAX_LABEL)
    whole[whole] &= values[whole] == np.trunc(values[whole])
    bad = np.flatnonzero(~whole)
    if len(bad):
        raise ValueError(
            f"{records.path}: record {keys[bad[0]]}: label {values[bad[0]]}: whole number within"
            f" +-{MAX_LABEL} expected ({len(bad)} such records)"
        )
    return values.astype(np.int64)


def _class_names(rec_path: Path, labels: np.ndarray) -> tuple[Sequence[str], list[str]]:
    """Class names, from the names file or numbered; and what disagrees."""
    found = int(labels.max(initial=-1)) + 1
    stated = _read_property(rec_path.with_name("property")) if rec_path.stem == "train" else None
    names_path = rec_path.with_suffix(".classes.json")
    names: Sequence[str] = NumberNames(found if stated is None else stated)
    if names_path.exists():
        names = _read_names(names_path)
    problems = []
    for path, count in ((rec_path.with_name("property"), stated), (names_path, len(names))):
        if count is not None and path.exists() and count != found:
            problems.append(f"{path}: {count} classes stated, labels need {found}")
    return names, problems


def _read_property(path: Path) -> int | None:
    if not path.exists():
        return None
    lines = path.read_bytes()[:1000].splitlines()
    fields = lines[0].strip().split(b",") if lines else []
    if len(fields) != 3 or not all(field.strip().isdigit() for field in fields):
        raise ValueError(f"{path}: first line 'num_classes,height,width' expected")
    if int(fields[0]) > MAX_LABEL + 1:
        raise ValueError(f"{path}: {int(fields[0])} classes, expected at most {MAX_LABEL + 1}")
    return int(fields[0])


def _read_names(path: Path) -> Sequence[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: JSON list of class names expected: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: JSON list of class names expected")
    return StringTable(names)


def _insightface_keys(is_image: np.ndarray) -> np.ndarray:
    """Keys of a scanned InsightFace file: images count from 1 in file order."""
    return np.where(is_image, np.cumsum(is_image), 0)


def _header_problems(
    records: RecordFile,
    offsets: np.ndarray,
    header: int,
    is_image: np.ndarray,
    bare: np.ndarray,
) -> list[str]:
    """Where the header's counts differ from the records found; silent above 2^24."""
    labels, _ = unpack_body(records.read(int(offsets[header])), str(records.path))
    num_images, num_identities = int(is_image.sum()), int(bare.sum()) - 1
    expected = [num_images + 1, num_images + 1 + num_identities]
    if max(expected) > MAX_LABEL or labels.tolist() == expected:
        return []
    return [
        f"{records.path}: header record states {labels.tolist()}, the file holds {num_images}"
        f" images and {num_identities} identities: {expected} expected"
    ]
