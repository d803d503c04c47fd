"""Verification sets as InsightFace packs them: one pickle of (images, same), read without risk.

A pickle can run code, so none of its names is ever looked up: every global it may mention (NumPy's
reconstruct, ndarray, dtype and scalar, and codecs.encode) is replaced by an inert stand-in of
ours, any other is refused by name, and only the opcodes these files need are let through.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any

from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.pickle_opcodes import VALUES, check_opcodes


class _Dtype:
    """Stands in for numpy.dtype: remembers its name only."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None: ...


class _Array:
    """Stands in for numpy.ndarray and its reconstruct function: holds the raw bytes."""

    data: bytes | None = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, data = state
        if dtype.name != "u1" or shape not in ((len(data),), (len(data), 1)):
            raise ValueError(
                f"array of type {dtype.name!r} and shape {shape} with {len(data)} bytes: expected"
                " uint8 (n,) or (n, 1)"
            )
        self.data = bytes(data)


def _scalar(dtype: _Dtype, data: bytes) -> bool:
    """Stands in for NumPy's scalar."""
    if dtype.name not in ("b1", "bool") or data not in (b"\0", b"\1"):
        raise ValueError(f"NumPy scalar of type {dtype.name!r}: only bool expected")
    return data == b"\1"


def _encode(text: str, encoding: str | bytes = "latin1") -> bytes:
    """Stands in for codecs.encode: Python 3 writes bytes so in protocol 2."""
    if encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
        raise ValueError(f"encoding {encoding!r}: only latin1 expected")
    return str(text).encode("latin-1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"refused to load {module}.{name}: a .bin needs only NumPy arrays")
        return _STAND_INS[module, name]


def read_bin_items(path: str | os.PathLike[str]) -> tuple[list[bytes], list[bool]]:
    """Read an InsightFace .bin; nothing in it is executed.

    Both variants: images as ``bytes`` (classic files: Python 2 ``str``) or as uint8 arrays (n,)
    or (n, 1).

    Returns:
        2P encoded images, items 2i and 2i+1 forming pair i, and P flags: same person?

    Raises:
        ValueError: Malformed, or a pickle that wants anything else; names the refused global.
    """
    file = PositionalFile(path)
    data = file.read(0, file.size, "pickle")
    try:
        check_opcodes(data, VALUES)
        # Python 2 strings come as bytes; nothing else depends on the encoding.
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:
        # A damaged pickle makes the unpickler raise nearly anything.
        raise ValueError(f"{path}: InsightFace .bin (a pickle) expected: {error}") from error
    return _check_content(content, Path(path))


def _check_content(content: object, path: Path) -> tuple[list[bytes], list[bool]]:
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError(f"{path}: a pair (images, same) expected, found {_kind(content)}")
    images, same = content
    if not isinstance(images, list | tuple) or not isinstance(same, list | tuple):
        raise ValueError(f"{path}: two lists expected, found {_kind(images)} and {_kind(same)}")
    if len(images) != 2 * len(same):
        raise ValueError(
            f"{path}: two images a pair expected, found {len(images)} for {len(same)} pairs"
        )
    items: list[bytes] = []
    for number, image in enumerate(images):
        item = image.data if isinstance(image, _Array) else image
        if not isinstance(item, bytes):
            raise ValueError(
                f"{path}: image {number}: bytes or uint8 array expected, found {_kind(item)}"
            )
        items.append(item)
    for number, flag in enumerate(same):
        if not isinstance(flag, int) or flag not in (0, 1):
            raise ValueError(f"{path}: pair {number}: True or False expected, found {_kind(flag)}")
    return items, [bool(flag) for flag in same]


def _kind(value: object) -> str:
    return type(value).__name__
