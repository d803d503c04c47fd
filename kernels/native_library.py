"""The compiled half of mpsoftmax.kernels.native: finds it, checks it, declares its functions.

It is built from native.cpp when mpsoftmax is installed (setup.py), where there is a C++ compiler.
"""

import ctypes
import functools
import hashlib
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import torch  # noqa: F401  loads the OpenMP runtime whose threads the library uses

HERE = Path(__file__).parent
LIBRARY, SOURCE = HERE / "native.lib.so", HERE / "native.cpp"


class Move(ctypes.Structure):
    """Rows to be moved, and by what; native.cpp says what the fields are."""

    _fields_ = (
        *((name, c_void_p) for name in ("gradient", "rows", "first", "second")),
        *((name, c_void_p) for name in ("correction1", "correction2")),
        *((name, c_int64) for name in ("num_rows", "dim")),
        *(
            (name, c_float)
            for name in ("lr", "decay", "kept", "beta1", "beta2", "rest1", "rest2", "eps")
        ),
        ("num_threads", c_int32),
    )


ENTRY_ARGUMENTS = (c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p, c_int32)
ROW_ARGUMENTS = (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int32)
DTYPES = ("float32", "bfloat16")


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        OSError: there is none, it cannot be loaded, or it was built from another native.cpp.
    """
    again = "install mpsoftmax again (pip install -e . in a checkout), on Linux with g++ at hand"
    if not LIBRARY.exists():
        raise OSError(f"was not built: {LIBRARY} is missing; {again}")
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.source_digest.restype = c_char_p
    except (OSError, AttributeError) as error:
        raise OSError(f"cannot be loaded: {error}; {again}") from error
    if loaded.source_digest().decode() != digest(SOURCE):
        raise OSError(f"was built from another {SOURCE.name} than the one beside it; {again}")
    declare(loaded, "move_rows", (POINTER(Move),))
    for name in DTYPES:
        declare(loaded, f"exponentiate_{name}", ENTRY_ARGUMENTS)
        declare(loaded, f"exponentiate_times_factor_{name}", ENTRY_ARGUMENTS)
        for out in DTYPES:
            declare(loaded, f"prepare_{name}_{out}", ROW_ARGUMENTS)
    return loaded


def declare(loaded: ctypes.CDLL, name: str, arguments: tuple[type, ...]) -> None:
    """Says what a function takes; it returns nothing."""
    function = getattr(loaded, name)
    function.argtypes, function.restype = arguments, None


def digest(source: Path) -> str:
    """SHA-256 of a source, as setup.py builds it in."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def obstacle() -> str | None:
    """Why the library cannot be used; None if it can."""
    try:
        library()
    except OSError as error:
        return str(error)
    return None
