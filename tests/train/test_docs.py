"""docs/configuration.md names every key, and no other."""

import dataclasses
import re
import typing
from pathlib import Path

from mpsoftmax.config import Config

DOCS = Path(__file__).resolve().parents[2] / "docs"


def keys(kind: type, path: str = "") -> set[str]:
    out = set()
    for name, hint in typing.get_type_hints(kind).items():
        below = f"{path}{name}"
        if dataclasses.is_dataclass(hint):
            out |= keys(hint, below + ".")
        else:
            out |= {below}.union(*(keys(one, below + dot) for one, dot in sections(hint)))
    return out


def sections(hint, dot: str = "."):
    """Optional sections, and those a list holds."""
    for inner in typing.get_args(hint):
        if dataclasses.is_dataclass(inner):
            yield inner, dot
        yield from sections(inner, "[]." if typing.get_origin(inner) is tuple else dot)


def test_every_key_is_documented_and_no_other():
    text = (DOCS / "configuration.md").read_text()
    named = re.findall(r"^\| `([a-z_.\[\]]+\.[a-z_.\[\]]+)` \| [`(]", text, re.M)
    assert set(named) == keys(Config)
