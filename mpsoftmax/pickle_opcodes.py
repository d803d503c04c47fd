"""A pickle looked at before it is loaded: which opcodes it holds, and that its numbers are no traps."""

import pickletools
from collections.abc import Set

VALUES = frozenset(
    [
        *(
            "PROTO",
            "FRAME",
            "STOP",
            "MARK",
            "NONE",
            "NEWTRUE",
            "NEWFALSE",
            "GLOBAL",
            "STACK_GLOBAL",
        ),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2"),
        *("TUPLE3", "INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "REDUCE", "BUILD", "MEMOIZE"),
        *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    ]
)
"""Plain values, lists, tuples, names and their calls; no dict, persistent id or extension."""


def check_opcodes(data: bytes, allowed: Set[str]) -> None:
    """Walk a pickle without executing it: known opcodes, lengths and memo numbers that fit.

    Raises:
        ValueError: an opcode that is not allowed, a number that would make the unpickler take memory for
            what is not there, or bytes behind the end.
    """
    end = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        end = position or 0
        if opcode.name not in allowed:
            raise ValueError(f"opcode {opcode.name} at offset {end} refused")
        # A huge memo number would make the unpickler allocate a table of that size.
        if "PUT" in opcode.name and not 0 <= int(argument or 0) <= count:
            raise ValueError(f"memo number {argument} at offset {end}: at most {count} expected")
        if opcode.name == "FRAME" and int(argument or 0) > len(data):
            raise ValueError(f"frame of {argument} bytes at offset {end} of {len(data)}")
    if end != len(data) - 1:
        raise ValueError(f"end expected at offset {end}, {len(data) - 1 - end} more bytes found")
