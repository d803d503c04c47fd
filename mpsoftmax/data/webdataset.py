"""WebDataset shards: uncompressed tars in which files of one sample share their name up to the first dot.

A sample is an image (``.jpg``, ``.jpeg``, ``.png``, ``.webp``) and its class: ``.cls``, an ASCII integer, or
``.json`` with the key ``label``, an integer or text. Integer labels name classes by number, text labels are
numbered by plain string sort. Samples come in the order they lie, shard after shard; they are read in place.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpsoftmax.data.image_set import check_labels
from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.string_table import NumberNames, StringTable, numbered_classes
from mpsoftmax.data.tar_index import TarIndex, index_tar

IMAGE_PARTS = ("jpg", "jpeg", "png", "webp")
LABEL_PARTS = ("cls", "json")
LABEL_KEY = "label"
_OPEN_FILES = 64
_MOST_LABEL_BYTES = 1 << 20


class OpenShards:
    """Several files read by offset, of which only the last few are open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._files: OrderedDict[int, PositionalFile] = OrderedDict()

    def file(self, number: int) -> PositionalFile:
        """A file by its number."""
        if number not in self._files:
            while len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)
            self._files[number] = PositionalFile(self.paths[number])
        self._files.move_to_end(number)
        return self._files[number]


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Images of WebDataset shards; an ``ImageSet``.

    Attributes:
        shards: The tars.
        group_starts: int64 [shards + 1], index of each shard's first sample, and n.
        keys: Name of each sample, as far as the first dot.
        offsets: int64 [n], where a sample's image begins in its shard.
        sizes: int64 [n], bytes.
        labels: int64 [n].
        class_names: One name a class.
        problems: What was found and not used.
    """

    shards: OpenShards
    group_starts: np.ndarray
    keys: Sequence[str]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> bytes:
        """The image member's bytes."""
        what = f"sample {self.keys[index]}"
        file = self.shards.file(self._shard(index))
        return file.read(int(self.offsets[index]), int(self.sizes[index]), what)

    def name(self, index: int) -> str:
        """``shard.tar:key``."""
        return f"{self.shards.paths[self._shard(index)]}:{self.keys[index]}"

    def _shard(self, index: int) -> int:
        index = range(len(self))[index]
        return int(np.searchsorted(self.group_starts, index, side="right")) - 1


@dataclass
class _Sample:
    """The members of one sample: their numbers by extension, of image and label only."""

    images: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the base name is cut at its first dot; the extension in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def labelled_samples(index: TarIndex) -> tuple[int, int, str]:
    """How many images of a tar have a ``.cls`` or ``.json`` of their name, how many have none, and one such.

    Without any label file the images are not counted: (0, 1, one of them).
    """
    labels = {split_name(name)[0] for name in index.names if _part(name) in LABEL_PARTS}
    if not labels:
        first = next((name for name in index.names if _part(name) in IMAGE_PARTS), "")
        return 0, int(bool(first)), first
    images = [name for name in index.names if _part(name) in IMAGE_PARTS]
    without = [name for name in images if split_name(name)[0] not in labels]
    return len(images) - len(without), len(without), without[0] if without else ""


def _part(name: str) -> str:
    return split_name(name)[1]


def open_webdataset(
    paths: Sequence[Path], *, label_key: str = LABEL_KEY, check: bool = True
) -> ShardImages:
    """Read WebDataset shards as one set.

    Args:
        paths: The tars, in order.
        label_key: Where a ``.json`` holds the label.
        check: Refuse labels out of range; ``inspect`` reports them instead.

    Raises:
        ValueError: A damaged or compressed tar, a sample without a label or with two images, a label that
            is neither an integer nor text, or no sample at all; names shard and sample.
    """
    shards = OpenShards(paths)
    keys: list[str] = []
    labels: list[int | str] = []
    places: list[tuple[int, int]] = []
    starts = [0]
    problems: list[str] = []
    for number, path in enumerate(shards.paths):
        file = shards.file(number)
        index = index_tar(file)
        problems += index.problems
        for key, sample in _samples(index, path, problems).items():
            member = _only(sample.images, f"{path}:{key}", "image")
            labels.append(_label(file, index, sample, f"{path}:{key}", label_key))
            keys.append(key)
            places.append((int(index.offsets[member]), int(index.sizes[member])))
        starts.append(len(keys))
    if not keys:
        raise ValueError(f"{shards.paths[0]}: no samples in it: an image and its .cls or .json")
    numbers, names = _classes(labels, keys, str(shards.paths[0]))
    found = np.array(places, dtype=np.int64)
    images = ShardImages(
        shards=shards,
        group_starts=np.unique(np.array(starts, dtype=np.int64)),
        keys=StringTable(keys),
        offsets=found[:, 0],
        sizes=found[:, 1],
        labels=numbers,
        class_names=names,
        problems=tuple(problems),
    )
    if check:
        check_labels(numbers, len(names), images.name, str(shards.paths[0]))
    return images


def _samples(index: TarIndex, path: Path, problems: list[str]) -> dict[str, _Sample]:
    """The samples that have an image, in the order in which they begin."""
    samples: dict[str, _Sample] = {}
    for number, name in enumerate(index.names):
        key, part = split_name(name)
        kind = next((k for k in (IMAGE_PARTS, LABEL_PARTS) if part in k), None)
        if kind is None or not key.rpartition("/")[2]:
            problems.append(f"{path}:{name}: neither image nor class, not used")
            continue
        sample = samples.setdefault(key, _Sample())
        members = sample.images if kind is IMAGE_PARTS else sample.labels
        if part in members:
            raise ValueError(f"{path}: sample {key!r} has two members .{part}")
        members[part] = number
    for key in [key for key, sample in samples.items() if not sample.images]:
        problems.append(f"{path}:{key}: a class without an image, not used")
        del samples[key]
    return samples


def _only(members: dict[str, int], where: str, what: str) -> int:
    if len(members) != 1:
        found = ", ".join(f".{part}" for part in members) or "none"
        raise ValueError(f"{where}: one {what} expected, found {found}")
    return next(iter(members.values()))


def _label(
    file: PositionalFile, index: TarIndex, sample: _Sample, where: str, label_key: str
) -> int | str:
    """The label of a sample: of .cls where there is one, else of .json."""
    part = next((part for part in LABEL_PARTS if part in sample.labels), None)
    if part is None:
        raise ValueError(
            f"{where}: no .cls and no .json beside the image; allowed: one for every sample, or with "
            "layout=folders none for any"
        )
    member = sample.labels[part]
    size = int(index.sizes[member])
    if size > _MOST_LABEL_BYTES:
        raise ValueError(f"{where}.{part}: {size} bytes; allowed: at most {_MOST_LABEL_BYTES}")
    raw = file.read(int(index.offsets[member]), size, f"{where}.{part}")
    if part == "cls":
        return whole(raw.decode("ascii", "replace").strip(), f"{where}.cls")
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}.json: JSON expected: {error}") from None
    value = tree.get(label_key) if isinstance(tree, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        keys = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(
            f"{where}.json: an integer or text under {label_key!r} expected, found {keys[:200]}; say "
            "which key with label_key, or layout=folders to take the folders as classes"
        )
    return value if isinstance(value, str) else whole(str(value), f"{where}.json")


def whole(text: str, where: str) -> int:
    """An integer of at most 18 digits as a label is written.

    Raises:
        ValueError: It is none.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise ValueError(f"{where}: a whole number expected as label, found {text[:50]!r}")
    return int(text)


def _classes(
    labels: Sequence[int | str], keys: Sequence[str], source: str
) -> tuple[np.ndarray, NumberNames | StringTable]:
    """Labels int64 [n] and class names."""
    texts = [isinstance(label, str) for label in labels]
    if all(texts):
        names = sorted({str(label) for label in labels})
        place = {name: number for number, name in enumerate(names)}
        return np.array([place[str(label)] for label in labels], dtype=np.int64), StringTable(names)
    if any(texts):
        odd = texts.index(not texts[0])
        raise ValueError(
            f"sample {keys[odd]}: label {labels[odd]!r} beside {labels[0]!r}: all integers or all "
            "text expected"
        )
    numbers = np.array(labels, dtype=np.int64)
    return numbers, numbered_classes(numbers, source)
