"""Characters of font faces drawn as small grey images, and what is left out of them.

A character map overstates what a font draws. Three kinds of images are dropped: blanks, pictures
that stand for "no glyph" (equal to the face's own one, or recurring more than 3 times in the face;
that takes letters shared by several scripts too, whose class no picture can tell), and exact
duplicates of another face's image of the same character. Characters larger than the frame are
dropped as well: a cut one would not be that character.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsoftmax.data.fonts import Face

# Pixels an em takes in the frame, as a share of the frame: 27 in 32.
EM_SHARE = 27 / 32
# The middle of the em box above the baseline, in em: boxes reach from 0.12 below to 0.88 above.
EM_MIDDLE = 0.38
# A picture that recurs more often than this in one face stands for missing characters.
MAX_RECURRENCE = 3
# A noncharacter, in no font: what a face draws for it is its picture for missing characters.
MISSING = 0xFFFFE
# Families whose images of the same characters correlate more than this (median) are one design.
# Droid Sans Fallback and its descendant WenQuanYi Micro Hei: 1.00; AR PL UMing and BabelStone Han,
# which is built on it: 0.89; different designs reach 0.84 (DejaVu Sans and DejaVu Serif).
MAX_CORRELATION = 0.87

_CHUNK = 512  # characters drawn on one canvas
_NUM_COMPARED = 256  # characters on which two families are compared
_MIN_COMPARED = 20  # fewer common characters than this say nothing about a design
_HAN = (0x3400, 0xA000)  # ideographs: where two fonts have these, they decide


@dataclass(frozen=True)
class GlyphSet:
    """Rendered characters.

    Attributes:
        images: uint8 [n, size, size], ink 255 on 0.
        code_points: int32 [n].
        faces: int32 [n], position of the face in the list given.
        digests: uint64 [n], hash of each image's bytes.
    """

    images: np.ndarray
    code_points: np.ndarray
    faces: np.ndarray
    digests: np.ndarray

    def take(self, rows: np.ndarray) -> GlyphSet:
        """The images at some positions (int) or under a mask (bool [n])."""
        arrays = (self.images, self.code_points, self.faces, self.digests)
        return GlyphSet(*(array[rows] for array in arrays))


def render_faces(
    faces: Sequence[Face], code_points: np.ndarray | None, min_fonts: int, size: int
) -> tuple[GlyphSet, dict[str, int]]:
    """Draws the characters of all faces and drops what is no picture of them.

    Args:
        faces: font faces; of duplicates the first face's image stays.
        code_points: int [m], characters wanted; None for all.
        min_fonts: characters with fewer different images than this are left out.
        size: height and width of an image in pixels.

    Returns:
        (images sorted by code point, then by face; number of images dropped, by reason).
    """
    num_dropped: Counter[str] = Counter()
    offered = _offered(faces, code_points, num_dropped)
    candidates = _frequent(np.concatenate([np.empty(0, np.int32), *offered]), min_fonts)
    parts = [_empty(size)]
    for number, face in enumerate(faces):
        drawn = _render_face(face, number, offered[number], size, num_dropped)
        parts.append(drawn.take(np.isin(drawn.code_points, candidates)))
    glyphs = _concatenate(parts)
    keep = _first_of_equals(glyphs)
    num_dropped["duplicate"] += len(glyphs.images) - len(keep)
    keep = keep[np.isin(glyphs.code_points[keep], _frequent(glyphs.code_points[keep], min_fonts))]
    keep = keep[np.argsort(glyphs.code_points[keep], kind="stable")]
    return glyphs.take(keep), dict(num_dropped)


def _offered(
    faces: Sequence[Face], wanted: np.ndarray | None, num_dropped: Counter[str]
) -> list[np.ndarray]:
    """Wanted code points of each face, without those an earlier face of the file draws alike."""
    seen: dict[tuple, np.ndarray] = {}
    offered = []
    for face in faces:
        chosen = np.ones(len(face.code_points), bool)
        if wanted is not None:
            chosen = np.isin(face.code_points, wanted)
        # One number for (character, glyph): glyph ids have 16 bits.
        keys = face.code_points.astype(np.int64) << 16 | face.glyph_ids
        known = seen.get((face.path, face.outlines), np.empty(0, np.int64))
        repeated = np.isin(keys, known)
        num_dropped["duplicate"] += int((chosen & repeated).sum())
        seen[face.path, face.outlines] = np.concatenate([known, keys[~repeated]])
        offered.append(face.code_points[chosen & ~repeated])
    return offered


def _frequent(code_points: np.ndarray, min_count: int) -> np.ndarray:
    values, counts = np.unique(code_points, return_counts=True)
    return values[counts >= min_count]


def _empty(size: int) -> GlyphSet:
    none = np.empty(0, np.int32)
    return GlyphSet(np.empty((0, size, size), np.uint8), none, none, np.empty(0, np.uint64))


def _concatenate(parts: Sequence[GlyphSet]) -> GlyphSet:
    return GlyphSet(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.code_points for part in parts]),
        np.concatenate([part.faces for part in parts]),
        np.concatenate([part.digests for part in parts]),
    )


def _first_of_equals(glyphs: GlyphSet) -> np.ndarray:
    """Positions, ascending, of the first of each (code point, picture)."""
    keys = np.empty(len(glyphs.images), dtype=[("code_point", np.int32), ("digest", np.uint64)])
    keys["code_point"], keys["digest"] = glyphs.code_points, glyphs.digests
    return np.sort(np.unique(keys, return_index=True)[1])


def _render_face(
    face: Face, number: int, code_points: np.ndarray, size: int, num_dropped: Counter[str]
) -> GlyphSet:
    images, fits = _draw(face, np.append(code_points, MISSING), size)
    digests = np.array([_digest(image) for image in images], np.uint64)
    faces = np.full(len(code_points), number, np.int32)
    glyphs = GlyphSet(images[:-1], code_points, faces, digests[:-1])
    fits = fits[:-1]
    _, inverse, counts = np.unique(glyphs.digests, return_inverse=True, return_counts=True)
    recurring = (counts[inverse] > MAX_RECURRENCE) | (glyphs.digests == digests[-1])
    blank = fits & ~glyphs.images.any(axis=(1, 2))
    placeholder = fits & ~blank & recurring
    num_dropped["blank"] += int(blank.sum())
    num_dropped["placeholder"] += int(placeholder.sum())
    num_dropped["too large"] += int((~fits).sum())
    return glyphs.take(fits & ~blank & ~placeholder)


def _digest(image: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")


def _draw(face: Face, code_points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [m, size, size], and bool [m]: whether the character fits the frame."""
    from PIL import Image, ImageDraw, ImageFont

    em = round(size * EM_SHARE)
    # Basic layout: one glyph for one character, the same with and without the raqm library.
    font = ImageFont.truetype(face.path, em, index=face.index, layout_engine=ImageFont.Layout.BASIC)
    baseline = round(size / 2 + EM_MIDDLE * em)
    images = np.zeros((len(code_points), size, size), np.uint8)
    fits = np.zeros(len(code_points), bool)
    for start in range(0, len(code_points), _CHUNK):
        chunk = code_points[start : start + _CHUNK]
        canvas = Image.new("L", (size, size * len(chunk)))
        draw = ImageDraw.Draw(canvas)
        for row, code_point in enumerate(chunk.tolist()):
            text = chr(code_point)
            left, top, right, bottom = (int(x) for x in font.getbbox(text, anchor="ls"))
            if right - left > size or bottom - top > size:
                continue
            fits[start + row] = True
            # The em box is centred from top to bottom (a comma stays low), then moved only as far
            # as the ink needs; the ink is centred from left to right.
            x = (size - left - right) // 2
            y = min(max(baseline, -top), size - bottom)
            draw.text((x, row * size + y), text, font=font, fill=255, anchor="ls")
        images[start : start + len(chunk)] = np.asarray(canvas).reshape(-1, size, size)
    return images, fits


def merge_families(glyphs: GlyphSet, families: Sequence[str]) -> list[str]:
    """Joins families that are one design under several names.

    Two families are joined if the images of the characters they share (up to 256, evenly spaced
    over the code points, ideographs only if there are enough; the first face of each family)
    correlate with a median above `MAX_CORRELATION`. Joining is transitive.

    Args:
        glyphs: the rendered characters, sorted by code point, then by face.
        families: family of each face.

    Returns:
        Family of each face; joined ones are called "a + b".
    """
    group = {family: family for family in families}
    names = np.array(families)[glyphs.faces] if families else np.empty(0, str)
    members = {name: _first_images(glyphs, names == name) for name in np.unique(names).tolist()}
    for one, other in itertools.combinations(members, 2):
        if _correlation(glyphs.images, members[one], members[other]) > MAX_CORRELATION:
            old, new = group[other], group[one]
            group = {family: new if root == old else root for family, root in group.items()}
    joined = {
        root: " + ".join(sorted(family for family in group if group[family] == root))
        for root in group.values()
    }
    return [joined[group[family]] for family in families]


def _first_images(glyphs: GlyphSet, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code points under a mask, sorted, and the position of the first image of each."""
    rows = np.flatnonzero(mask)
    values, first = np.unique(glyphs.code_points[rows], return_index=True)
    return values, rows[first]


def _correlation(
    images: np.ndarray, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> float:
    """Median correlation of the images of common characters; 0 where too few are common."""
    common, in_one, in_other = np.intersect1d(one[0], other[0], return_indices=True)
    han = np.flatnonzero((common >= _HAN[0]) & (common < _HAN[1]))
    usable = han if len(han) >= _MIN_COMPARED else np.arange(len(common))
    if len(usable) < _MIN_COMPARED:
        return 0.0
    steps = np.linspace(0, len(usable) - 1, min(_NUM_COMPARED, len(usable))).astype(int)
    places = usable[steps]
    pair = []
    for rows in (one[1][in_one[places]], other[1][in_other[places]]):
        flat = images[rows].reshape(len(places), -1).astype(np.float64)
        flat -= flat.mean(axis=1, keepdims=True)
        pair.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
    return float(np.median((pair[0] * pair[1]).sum(axis=1)))
