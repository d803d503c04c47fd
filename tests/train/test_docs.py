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
        out |= keys(hint, below + ".") if dataclasses.is_dataclass(hint) else {below}
    return out


def test_every_key_is_documented_and_no_other():
    text = (DOCS / "configuration.md").read_text()
    assert set(re.findall(r"^\| `([a-z_.]+\.[a-z_.]+)` \| `", text, re.M)) == keys(Config)
