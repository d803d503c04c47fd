"""The sections of the configuration that say what is trained on."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphsConfig:
    """Characters rendered from installed fonts (data.train: glyphs)."""

    fonts: tuple[str, ...] = ()
    """Font files or folders to use besides those found."""
    system_fonts: bool = True
    """Use fonts found on the system."""
    matplotlib_fonts: bool = True
    """Use the fonts that matplotlib carries."""
    code_points: Literal["all", "cjk"] = "all"
    """all: every character drawn by enough fonts; cjk: the 20,902 ideographs U+4E00 to U+9FA5."""
    min_fonts: int = 4
    """Least number of different images, over all fonts, that a character must have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Random patterns, one a class (data.train: synthetic)."""

    num_classes: int = 1000
    """Classes."""
    images_per_class: int = 20
    """Images of each class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """One of the datasets of data.train, whose classes are its own."""

    path: str
    """glyphs, synthetic, or a path, as data.train."""
    name: str | None = None
    """What it is called in messages, metrics and class names; default the path's last part."""
    weight: float | None = None
    """Relative share of the samples drawn; null in all datasets: their numbers of images."""
    margin: float | None = None
    """Margin of its samples in place of the objective's."""
    under: str = ""
    """Only the classes below this path of a folder or tar; of a folder of Parquet shards, the split."""
    reader: dict[str, Any] = field(default_factory=dict)
    """What the format's reader is told, as data.reader."""
    part: str = ""
    """k/n: of every class only the images k, k + n, k + 2n, ..., counted from 1."""
    min_images_per_class: int | None = None
    """Classes with fewer images (of the part) are left out; default data.min_images_per_class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is trained on and in which order."""

    train: str | tuple[str | DatasetConfig, ...] = "glyphs"
    """glyphs, synthetic, or a path: image folder, .tar, .rec, .arrow, .parquet, a list of paths, shards
    ([formats](data.md)); or a list of datasets, each such a name or {path: ..., weight: ...}."""
    under: str = ""
    """Only the classes below this path of a folder or tar; of a folder of Parquet shards, the split."""
    reader: dict[str, Any] = field(default_factory=dict)
    """What the format's reader is told: layout, label_key (tar); dialect, label_column (list); image_column,
    label_column (Parquet)."""
    eval: tuple[str, ...] = ()
    """Verification sets: .bin files, pair lists (list.csv or list.txt, images beside it or in
    `list.csv@folder-or.tar`), glyphs-open, glyphs-closed, or held-back."""
    image_size: tuple[int, int] = (112, 112)
    """Height and width in pixels fed to the backbone."""
    crop: float = 1.0
    """Central share of each side of an image that is kept before resizing, in training and evaluation."""
    min_images_per_class: int = 1
    """Classes with fewer images are left out."""
    held_back: int = 0
    """Classes of at least two images that are not trained on; their pairs are `held-back` in data.eval."""
    order: Literal["images", "grouped", "classes", "pk"] = "images"
    """Uniform over images; the same by groups that are read together (Parquet row groups, shards); uniform
    over classes; or groups of images_per_class images of one class."""
    order_window: int = 8
    """Row groups or shards whose images order grouped shuffles together, and a reader keeps in memory."""
    images_per_class: int = 4
    """K of the pk order."""
    augment: str | tuple[dict[str, Any], ...] = "face"
    """A named default (none, face, reid, glyph) or a list of {kind: ..., parameters}."""
    decoder: Literal["pillow", "simplejpeg", "opencv"] = "pillow"
    """Who decodes images; bytes differ between decoders, so it is never chosen silently."""
    workers: int = 1
    """Worker processes a rank that decode and augment; 0 decodes in the training process."""
    max_corrupt: int = 0
    """Undecodable images tolerated (left out of the loss) before training stops with the file's name."""
    seed: int = 0
    """Key of what is held out: the glyph split's characters and fonts, and the classes of held_back."""
    glyphs: GlyphsConfig = field(default_factory=GlyphsConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    @property
    def datasets(self) -> tuple[DatasetConfig, ...]:
        """data.train as a list of datasets, each with its name; names that would repeat are numbered."""
        if isinstance(self.train, str):
            alone = DatasetConfig(path=self.train, under=self.under, reader=self.reader)
            return (replace(alone, name=alone.path),)
        listed = [DatasetConfig(path=d) if isinstance(d, str) else d for d in self.train]
        names = [PurePath(d.path).stem or d.path for d in listed]
        unnamed = Counter(n for n, d in zip(names, listed, strict=True) if d.name is None)
        seen: Counter[str] = Counter()
        for i, name in enumerate(names):
            if unnamed[name] > 1 and listed[i].name is None:
                seen[name] += 1
                names[i] = f"{name}-{seen[name]}"
        return tuple(replace(d, name=d.name or n) for n, d in zip(names, listed, strict=True))
