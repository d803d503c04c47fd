"""A checksum of every file of a checkpoint: sums.json, written last before the directory is renamed.

    {"files": {"__0_0.distcp": {"bytes": 1234, "sha256": "..."}, ...}}

Sums find what disks, networks and copies damage. They do not tell who wrote a checkpoint: whoever can change
a file can change its sum (docs/security.md).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUMS_FILE = "sums.json"
Sums = dict[str, dict[str, Any]]


def sum_of(path: Path) -> dict[str, Any]:
    """Length in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def sums_of(paths: list[Path]) -> Sums:
    """The sums of files, by name."""
    return {path.name: sum_of(path) for path in paths}


def read_sums(folder: Path) -> Sums:
    """sums.json of a checkpoint.

    Raises:
        ValueError: missing or damaged.
    """
    try:
        tree = json.loads((folder / SUMS_FILE).read_text(encoding="utf-8"))
        files = tree["files"]
        good = all(set(entry) == {"bytes", "sha256"} for entry in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{SUMS_FILE} cannot be read: {error}") from error
    if not good:
        raise ValueError(f"{SUMS_FILE} is damaged")
    return files


def damage(folder: Path, rank: int = 0, world: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint, one line each; of `world` ranks each reads its share.

    Missing and foreign files and lengths are looked at before anything is read.
    """
    try:
        sums = read_sums(folder)
        names = {path.name for path in folder.iterdir()} - {SUMS_FILE}
    except (ValueError, OSError) as error:
        return [str(error)]
    found = [f"{name} is missing" for name in sorted(set(sums) - names)]
    found += [f"{name} is not in {SUMS_FILE}" for name in sorted(names - set(sums))]
    for name in sorted(set(sums) & names)[rank::world]:
        found += file_damage(folder / name, sums[name])
    return found


def file_damage(path: Path, expected: Mapping[str, Any]) -> list[str]:
    """What is wrong with one file: nothing, or one line."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return [f"{path.name} has {size} bytes, written were {expected['bytes']}"]
        if sum_of(path) != expected:
            return [f"{path.name} is not what was written: its SHA-256 differs"]
    except OSError as error:
        return [f"{path.name} cannot be read: {error}"]
    return []
