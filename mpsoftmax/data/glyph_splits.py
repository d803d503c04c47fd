"""Which rendered characters and which font families belong to which split of the glyph set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from mpsoftmax.data.glyph_cache import Rendered

SPLITS = ("train", "closed", "open", "all")
CODE_POINT_RANGES = {"cjk": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3)}

# Families are held out until they carry the first share of the seen characters' images; one that
# would push them past the second stays in training.
_ENOUGH_HELD_OUT = 0.15
_MOST_HELD_OUT = 1 / 3
# Characters drawn by no other family leave both splits; a family that costs more of them stays.
_MOST_CLASSES_LOST = 0.02


def parse_code_points(text: str | None) -> np.ndarray | None:
    """Characters named by a text such as "cjk" or "U+0370-U+03FF, hangul".

    Returns:
        int32 [m], sorted, without repetition; None for None.

    Raises:
        ValueError: a part is neither a known name nor a range.
    """
    if text is None:
        return None
    ranges = []
    for part in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"U\+([0-9A-Fa-f]{1,6})(?:-U\+([0-9A-Fa-f]{1,6}))?", part)
        if part not in CODE_POINT_RANGES and match is None:
            names = ", ".join(CODE_POINT_RANGES)
            raise ValueError(f"code_points: {part!r} is neither one of {names} nor U+XXXX-U+YYYY")
        first, last = (
            CODE_POINT_RANGES[part]
            if match is None
            else (int(match[1], 16), int(match[2] or match[1], 16))
        )
        if not first <= last <= 0x10FFFF:
            raise ValueError(f"code_points: {part!r} is not an ascending range up to U+10FFFF")
        ranges.append(np.arange(first, last + 1, dtype=np.int32))
    return np.unique(np.concatenate(ranges))


def choose_images(
    rendered: Rendered, split: str, seed: int, held_out: float
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a split.

    Args:
        rendered: the rendered set.
        split: one of `SPLITS`.
        seed: chooses the held-out characters and families.
        held_out: share of the characters that are held out.

    Returns:
        (positions in the set, int64 [n], ascending; code points of the classes, int32, sorted).
    """
    if split == "all":
        return np.arange(len(rendered.code_points)), np.unique(rendered.code_points)
    unseen = _chance(seed, rendered.code_points) < held_out
    if split == "open":
        return np.flatnonzero(unseen), np.unique(rendered.code_points[unseen])
    families = np.array(rendered.face_families)[rendered.faces]
    closed = np.isin(families, held_out_families(rendered, ~unseen, seed))
    classes = np.unique(rendered.code_points[~unseen & ~closed])
    wanted = ~unseen & (closed if split == "closed" else ~closed)
    return np.flatnonzero(wanted & np.isin(rendered.code_points, classes)), classes


def _chance(seed: int, code_points: np.ndarray) -> np.ndarray:
    """float64 [n] in [0, 1): a number for each (seed, code point), by splitmix64's mixing."""
    key = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    x = (code_points.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


def held_out_families(rendered: Rendered, seen: np.ndarray, seed: int) -> list[str]:
    """Font families kept out of training.

    Families are tried in the order of a hash of (seed, name), until those taken carry 15 % of the
    images of seen characters. One that would raise this above a third, or leave more than 2 % of
    the seen characters without a training image, is passed over.

    Args:
        rendered: the rendered set.
        seen: bool [n], images of seen characters.
        seed: chooses the order.

    Returns:
        Names of families; empty if there is none to spare.
    """
    names, family_of_face = numbered(rendered.face_families)
    family = family_of_face[rendered.faces[seen]]
    characters, character = np.unique(rendered.code_points[seen], return_inverse=True)

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{name}".encode()).digest()

    taken = np.zeros(len(family), bool)
    chosen: list[str] = []
    for number in sorted(np.unique(family).tolist(), key=lambda number: rank(names[number])):
        if taken.sum() >= _ENOUGH_HELD_OUT * len(family):
            break
        trial = taken | (family == number)
        num_lost = len(characters) - len(np.unique(character[~trial]))
        if trial.mean() <= _MOST_HELD_OUT and num_lost <= _MOST_CLASSES_LOST * len(characters):
            taken = trial
            chosen.append(names[number])
    return chosen


def numbered(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Distinct names, sorted, and the number of each given name, int64 [len(names)]."""
    distinct = tuple(sorted(set(names)))
    numbers = {name: number for number, name in enumerate(distinct)}
    return distinct, np.array([numbers[name] for name in names], dtype=np.int64)
