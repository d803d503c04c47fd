"""Checks of option values that come from a configuration file."""

from collections.abc import Sequence


def rate(name: str, value: object) -> float:
    """Return ``value`` as a probability below 1, or raise ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)


def whole_number(name: str, value: object) -> int:
    """Return ``value`` as an int of at least 1, or raise ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def whole_numbers(name: str, value: object, length: int | None = None) -> tuple[int, ...]:
    """Return ``value`` as a tuple of ints of at least 1, or raise ValueError naming the option.

    Args:
        name: what the message calls the option.
        value: a list or tuple.
        length: how many numbers there must be; None = at least one.
    """
    wanted = "at least one" if length is None else str(length)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list of whole numbers ({wanted}), got {value!r}")
    if not value or (length is not None and len(value) != length):
        raise ValueError(f"{name} must hold {wanted} whole numbers, got {list(value)!r}")
    return tuple(whole_number(f"{name}[{i}]", item) for i, item in enumerate(value))


def image_size_multiple_of(stride: int, image_size: tuple[int, int], net: str) -> tuple[int, int]:
    """Return the size of the last feature map, ``image_size / stride``.

    Args:
        stride: pixels of input per cell of the last feature map.
        image_size: (height, width) in pixels.
        net: the net's name, for the message.

    Raises:
        ValueError: a side is not a multiple of ``stride``.
    """
    height, width = image_size
    if height % stride or width % stride:
        raise ValueError(
            f"image_size must be a multiple of {stride} on both sides for {net}, "
            f"got {height} x {width}"
        )
    return height // stride, width // stride
