"""Augmentations: small frozen descriptions that turn an image into another of the same size.

All work on uint8 [H, W, 3] RGB arrays, draw from the generator they are given, in the same order
for the same settings, and never change their input. Distances are in pixels, angles in radians,
shares and probabilities without unit.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np

from mpsoftmax.data.geometry_transforms import Affine, Crop, Flip
from mpsoftmax.data.pixel_transforms import Colour, Erase, LowResolution


class Transform(Protocol):
    """An augmentation."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, 3] to uint8 [H, W, 3]; the input stays as it is."""
        ...


TRANSFORMS: dict[str, type] = {
    "flip": Flip,
    "crop": Crop,
    "erase": Erase,
    "colour": Colour,
    "low_resolution": LowResolution,
    "affine": Affine,
}

# The field's defaults: insightface trains faces with the flip alone; re-ID baselines (Luo et al.
# 2019) with flip, padding by 10 and erasing; characters must not be mirrored.
DEFAULTS: dict[str, tuple[Transform, ...]] = {
    "none": (),
    "face": (Flip(),),
    "reid": (Flip(), Crop(pad=10), Erase(p=0.5)),
    "glyph": (Affine(),),
}


def build(descriptions: Sequence[Mapping[str, Any]]) -> tuple[Transform, ...]:
    """Augmentations from descriptions such as {"kind": "crop", "pad": 10}, in their order.

    Args:
        descriptions: mappings of `kind` (a key of `TRANSFORMS`) and that kind's fields.

    Raises:
        ValueError: no or an unknown kind, a field the kind does not have, or a bad value; names
            the place in the list, the field and what is allowed.
    """
    return tuple(_build(place, entry) for place, entry in enumerate(descriptions))


def _build(place: int, description: Mapping[str, Any]) -> Transform:
    where = f"augment[{place}]"
    if not isinstance(description, Mapping) or "kind" not in description:
        raise ValueError(f"{where}: {description!r} is not a mapping with the key 'kind'")
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in description.items()
        if key != "kind"
    }
    kind = description["kind"]
    if kind not in TRANSFORMS:
        raise ValueError(f"{where}.kind: {_unknown(kind, TRANSFORMS)}")
    names = [field.name for field in fields(TRANSFORMS[kind])]
    for key in values:
        if key not in names:
            raise ValueError(f"{where}.{key}: {kind} has no such field: {_unknown(key, names)}")
    try:
        return TRANSFORMS[kind](**values)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error


def _unknown(name: object, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is not one of {', '.join(known)}{hint}"
