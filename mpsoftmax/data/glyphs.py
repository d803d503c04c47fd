"""Glyphs: characters rendered from installed fonts, a real data set that every machine can make.

A class is a code point, its images are that character in different fonts. The fonts that
matplotlib carries give about 4,200 classes and 37,000 images; CJK fonts 20,902 classes and more.

Two things are held back, both by hashes of (seed, code point) and (seed, family), so that neither
depends on the order in which fonts are found:

- a fifth of the code points, never trained on: the open set (verification, retrieval);
- some font families, never trained on: the closed set (the trained classes in unseen fonts).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpsoftmax.data.font_files import font_files
from mpsoftmax.data.glyph_cache import Rendered, default_cache_dir, rendered_glyphs
from mpsoftmax.data.glyph_splits import SPLITS, choose_images, numbered, parse_code_points


class Glyphs:
    """Characters rendered from fonts: an `ImageSet` of grey images, three equal channels.

    Attributes:
        labels: int64 [n], class of each image.
        class_names: "U+4E00" and so on, in the order of the code points.
        fonts: int64 [n], index into `font_names`.
        font_names: PostScript names of all faces read.
        families: int64 [n], index into `family_names`.
        family_names: font families, as kept on one side of a split.
        problems: fonts that could not be used, wholly or in part, one sentence each.
    """

    def __init__(
        self,
        rendered: Rendered,
        rows: np.ndarray,
        code_points: np.ndarray,
    ) -> None:
        """Selects images of a rendered set.

        Args:
            rendered: the set.
            rows: int64 [n], positions in it.
            code_points: int32 [num_classes], the classes, sorted; every row shows one of them.
        """
        self.labels = np.searchsorted(code_points, rendered.code_points[rows]).astype(np.int64)
        self.class_names: Sequence[str] = tuple(f"U+{c:04X}" for c in code_points.tolist())
        self.fonts = rendered.faces[rows].astype(np.int64)
        self.font_names = rendered.face_names
        self.family_names, family_of_face = numbered(rendered.face_families)
        self.families = family_of_face[self.fonts]
        self.problems = rendered.problems
        self._images_file = rendered.images_file
        self._rows = rows
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """uint8 [size, size, 3], ink 255 on 0."""
        pixels = self._pixels
        if pixels is None:
            pixels = self._pixels = np.load(self._images_file, mmap_mode="r")
        return np.repeat(pixels[self._rows[index]][:, :, None], 3, axis=2)

    def name(self, index: int) -> str:
        """The character and the font, as "U+4E00 in DejaVuSans"."""
        character = self.class_names[self.labels[index]]
        return f"{character} in {self.font_names[self.fonts[index]]}"

    def __getstate__(self) -> dict:
        # A pickled memory map would carry its pixels along; the other process maps the file itself.
        return {**self.__dict__, "_pixels": None}


def open_glyphs(
    *,
    split: str = "train",
    fonts: Sequence[str | Path] = (),
    use_system_fonts: bool = True,
    use_matplotlib_fonts: bool = True,
    min_fonts: int = 4,
    size: int = 32,
    seed: int = 0,
    code_points: str | None = None,
    held_out: float = 0.2,
    cache_dir: str | Path | None = None,
) -> Glyphs:
    """Opens the glyph set, rendering it first if the cache does not hold it.

    Characters are drawn with an em of 27/32 of the frame, white on black. Left out are blanks,
    placeholders, exact duplicates within a class, controls and private-use characters.

    Args:
        split: "train": seen characters in training fonts; "closed": the same classes in held-out
            font families; "open": held-out characters in all fonts; "all": everything.
        fonts: font files or folders of the user, read before any other.
        use_system_fonts: read the fonts installed on this machine. The set then differs from
            machine to machine.
        use_matplotlib_fonts: read the fonts matplotlib carries.
        min_fonts: different images a character must have, over all fonts, to be a class.
        size: height and width of an image in pixels, at least 8.
        seed: chooses the held-out characters and families; it does not change a picture.
        code_points: characters to draw: None for all that the fonts have; "cjk" (U+4E00..U+9FA5),
            "hangul", ranges as "U+0370-U+03FF", or several of these with commas between.
        held_out: share of the characters that are held out for the open set, in [0, 1).
        cache_dir: folder for rendered sets; default $MPSOFTMAX_CACHE, else ~/.cache/mpsoftmax.

    Returns:
        The images of the split, sorted by code point, then by font. "train" and "closed" have the
        same classes.

    Raises:
        ValueError: a bad argument, fonts that give no class, or a split that is empty.
    """
    _check(split, min_fonts, size, held_out)
    rendered = rendered_glyphs(
        font_files(fonts, use_matplotlib=use_matplotlib_fonts, use_system=use_system_fonts),
        code_points=parse_code_points(code_points),
        min_fonts=min_fonts,
        size=size,
        cache_dir=default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser(),
    )
    if not len(rendered.code_points):
        raise ValueError(
            f"min_fonts: no character has {min_fonts} different images in the"
            f" {len(rendered.face_names)} font faces found"
        )
    rows, classes = choose_images(rendered, split, seed, held_out)
    if not len(rows):
        raise ValueError(
            f"split: {split!r} is empty with held_out={held_out} and"
            f" {len(set(rendered.face_families))} font families"
        )
    return Glyphs(rendered, rows, classes)


def _check(split: str, min_fonts: int, size: int, held_out: float) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    if min_fonts < 1:
        raise ValueError(f"min_fonts: {min_fonts} is not at least 1")
    if size < 8:
        raise ValueError(f"size: {size} pixels are too few for a character, at least 8")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out: {held_out} is not in [0, 1)")
