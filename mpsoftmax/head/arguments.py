"""Checks of the head's arguments."""

from types import UnionType


def check_choice(field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError unless value is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{field}: {value!r}; allowed: {', '.join(map(str, allowed))}")


def check_part(field: str, value: object, kind: type | UnionType) -> None:
    """Raise ValueError unless value is an instance of `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{field}: {value!r}; allowed: its name, or an instance of {kind}")


def check_whole(field: str, value: int, least: int) -> None:
    """Raise ValueError unless value is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{field}: {value!r}; allowed: a whole number >= {least}")
