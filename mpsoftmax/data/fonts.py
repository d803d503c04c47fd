"""Font faces: what font files hold, to which family a face belongs, which characters it maps.

A face (one design, one weight, one slope) is read once: a second copy with the same PostScript
name is left out. Nothing is dropped silently: whatever cannot be used is described in a list of
problems.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mpsoftmax.data.font_files import OTHER_SUFFIXES, OUTLINE_SUFFIXES

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

# A font that maps more code points than this for each of its glyphs has no glyphs of their own for
# them (Last Resort: 1,114,112 code points, some 400 boxes).
MAX_CODE_POINTS_PER_GLYPH = 4

# Above this share of map entries contradicted by the glyph's own name, only confirmed entries are
# believed. Matplotlib's Computer Modern faces lie in 15 to 45 %, ordinary fonts in less than 1 %.
MAX_CONTRADICTED = 0.1

# Name parts that tell members of one family apart: weight, width, slope, region, build.
_MEMBER_WORDS = """
    thin hairline extralight ultralight light demilight semilight regular normal book roman text
    medium demibold semibold demi bold extrabold ultrabold black heavy ultra
    condensed semicondensed extracondensed narrow wide expanded extended italic oblique slanted
    sc tc hk jp kr cn tw gb mo mbe hc tsc
"""


@dataclass(frozen=True)
class Face:
    """One face of one font file.

    Attributes:
        path: the file.
        index: the face's number inside the file (collections hold several).
        name: PostScript name, unique among the faces in use.
        family: normalised family, see `normalise_family`.
        code_points: int32 [n], sorted: the characters its map offers and its glyph names do not
            contradict.
        glyph_ids: int32 [n]: the glyph drawn for each of them.
        outlines: where the glyphs' outlines begin in the file, in bytes. The faces of a collection
            often share them: then equal glyph ids mean equal pictures.
    """

    path: Path
    index: int
    name: str
    family: str
    code_points: np.ndarray
    glyph_ids: np.ndarray
    outlines: int


def read_faces(files: Iterable[Path]) -> tuple[list[Face], list[str]]:
    """Reads the faces of font files.

    Args:
        files: font files, as `font_files` gives them.

    Returns:
        (faces in reading order, problems: one sentence for each file or face left out, and for each
        face whose map was cut down to the entries its glyph names confirm).
    """
    faces: dict[str, Face] = {}
    problems: list[str] = []
    for path in files:
        if path.name.lower().endswith(OTHER_SUFFIXES):
            problems.append(f"{path}: not an outline font ({', '.join(OUTLINE_SUFFIXES)})")
            continue
        try:
            num_faces = _num_faces(path)
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
            continue
        for index in range(num_faces):
            face, problem = _read_face(path, index)
            if problem:
                problems.append(f"{path}, face {index}: {problem}")
            if face is not None and face.name in faces:
                known = faces[face.name].path
                problems.append(f"{path}, face {index}: {face.name} was already read from {known}")
            elif face is not None:
                faces[face.name] = face
    return list(faces.values()), problems


def _num_faces(path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(12)
    if len(header) < 12:
        raise ValueError("too short to be a font")
    return int.from_bytes(header[8:12], "big") if header[:4] == b"ttcf" else 1


def _read_face(path: Path, index: int) -> tuple[Face | None, str]:
    """One face, or None; and what is wrong with it, or an empty string."""
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    try:
        ImageFont.truetype(path, 16, index=index)  # bitmap-only faces fail here
        with TTFont(path, fontNumber=index, lazy=True) as font:
            glyph_names = font.getBestCmap()
            if not glyph_names:
                return None, "has no Unicode character map (a symbol font)"
            num_glyphs = font["maxp"].numGlyphs
            if len(glyph_names) > MAX_CODE_POINTS_PER_GLYPH * num_glyphs:
                return None, (
                    f"maps {len(glyph_names):,} code points onto {num_glyphs:,} glyphs:"
                    " a font of placeholders"
                )
            name, family = _names(font)
            code_points, problem = _believed(glyph_names)
            glyph_ids = [font.getGlyphID(glyph_names[c]) for c in code_points]
            outlines = _outlines(font)
    except Exception as error:  # fontTools raises a dozen kinds on damaged files
        return None, f"cannot be loaded: {type(error).__name__}: {error}"
    face = Face(
        path=path,
        index=index,
        name=name or f"{path.name}#{index}",
        family=family,
        code_points=np.array(code_points, dtype=np.int32),
        glyph_ids=np.array(glyph_ids, dtype=np.int32),
        outlines=outlines,
    )
    return face, problem


def _outlines(font: TTFont) -> int:
    tables = cast(Any, font.reader).tables
    return next((tables[tag].offset for tag in ("glyf", "CFF ", "CFF2") if tag in tables), 0)


def _names(font: TTFont) -> tuple[str, str]:
    table = font["name"]
    post_script = table.getDebugName(6) or ""
    family = table.getDebugName(16) or table.getDebugName(1) or post_script
    return post_script, normalise_family(family)


def normalise_family(name: str) -> str:
    """Family name without the words that tell its members apart.

    The name table's typographic family (entry 16, else 1), lower case, split at spaces, hyphens
    and underscores, without words for weight, width, slope or region ("AR PL UMing TW MBE" and
    "AR PL UMing CN" are one family). A name made of such words only stays as it is.
    """
    words = re.split(r"[\s_-]+", name.strip().lower())
    kept = [word for word in words if word not in _MEMBER_WORDS.split()]
    return " ".join(kept or words)


def _believed(glyph_names: dict[int, str]) -> tuple[list[int], str]:
    """The code points, sorted, to believe of a character map, and a remark where some were not.

    A glyph's name often says which character it is (Adobe's glyph list: "Gamma", "uni4E00").
    Sharing a glyph between look-alikes contradicts a few names in any font; many contradictions
    mean that the map is a legacy encoding in disguise, as in TeX fonts.
    """
    from fontTools import agl

    mapped = {c: name for c, name in glyph_names.items() if _is_character(c)}
    spelled = {c: agl.toUnicode(name) for c, name in mapped.items()}
    confirmed = [c for c, text in spelled.items() if text == chr(c)]
    num_contradicted = sum(bool(text) for text in spelled.values()) - len(confirmed)
    believed, problem = list(mapped), ""
    if num_contradicted > MAX_CONTRADICTED * len(mapped):
        believed = confirmed
        problem = (
            f"its glyph names contradict {num_contradicted} of {len(mapped)} entries of its character"
            f" map; the {len(confirmed)} confirmed ones are used"
        )
    return sorted(believed), problem


def _is_character(code_point: int) -> bool:
    """False for controls, format marks, surrogates and the private-use areas (no common meaning)."""
    return unicodedata.category(chr(code_point)) not in ("Cc", "Cf", "Cs", "Co")
