"""Checks of the augmentations' settings: each raises ValueError naming the field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises ValueError naming the field, its value and what is allowed, unless `condition`."""
    if not condition:
        raise ValueError(f"{field}: {value!r} is not {allowed}")


def is_number(value: object) -> bool:
    """True for finite int and float; bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_share(field: str, value: Any) -> None:
    """Requires a number in [0, 1]."""
    require(is_number(value) and 0 <= value <= 1, field, value, "a number in [0, 1]")


def check_interval(field: str, value: Any, low: float, high: float) -> None:
    """Requires a pair low < a <= b <= high."""
    pair = isinstance(value, Sequence) and len(value) == 2 and all(map(is_number, value))
    valid = pair and low < value[0] <= value[1] <= high
    require(valid, field, value, f"a pair a <= b in ({low:g}, {high:g}]")


def check_colour(field: str, value: Any) -> None:
    """Requires three integers in 0..255."""
    valid = isinstance(value, Sequence) and len(value) == 3
    valid = valid and all(type(level) is int and 0 <= level <= 255 for level in value)
    require(valid, field, value, "three integers in 0..255")
