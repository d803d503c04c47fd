"""Sets that lie in several files: which files a folder, a glob or a brace range stands for."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SHARD = re.compile(r"(?P<split>.+?)[-_](?P<number>\d+)-of-(?P<count>\d+)")
MOST_SHARDS = 1_000_000


def is_pattern(spec: str) -> bool:
    """Whether a path that does not exist as it stands is a glob or has a brace range."""
    return bool(_BRACES.search(spec)) or glob.has_magic(spec)


def expand(spec: str) -> list[Path]:
    """The files of a pattern: ``shard-{000..099}.tar``, ``{a,b}.parquet``, ``train-*.parquet``.

    A brace range gives every file of it, and one that is missing is an error; a glob gives what there is,
    sorted by name.

    Raises:
        ValueError: No file, or one of a range that is missing.
    """
    names = [spec]
    while any(_BRACES.search(name) for name in names):
        names = [one for name in names for one in _expand_first(name)]
        if len(names) > MOST_SHARDS:
            raise ValueError(f"data {spec!r}: more than {MOST_SHARDS} files")
    paths: list[Path] = []
    for name in names:
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not found or not Path(found[0]).exists():
            raise ValueError(f"data {spec!r}: no such file {name}")
        paths += [Path(one) for one in found]
    if len(set(paths)) < len(paths):
        raise ValueError(f"data {spec!r}: names a file twice")
    return paths


def _expand_first(name: str) -> list[str]:
    match = _BRACES.search(name)
    if match is None:
        return [name]
    inside, before, after = match[1], name[: match.start()], name[match.end() :]
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return [f"{before}{choice}{after}" for choice in inside.split(",")]
    low, high = int(numbers[1]), int(numbers[2])
    if high < low or high - low >= MOST_SHARDS:
        raise ValueError(f"data {name!r}: {{{inside}}} is no range of at most {MOST_SHARDS} files")
    return [f"{before}{number:0{len(numbers[1])}d}{after}" for number in range(low, high + 1)]


def parquet_shards(folder: Path, split: str = "") -> list[Path]:
    """The shards of one split in a folder: ``train-00000-of-00002.parquet``, or any ``*.parquet``.

    Args:
        folder: The folder.
        split: What the names begin with; empty where the folder holds one split only.

    Raises:
        ValueError: No such split, several splits and none chosen, or a shard that is missing.
    """
    files = sorted(folder.glob("*.parquet"))
    matches = {path: _SHARD.fullmatch(path.stem) for path in files}
    splits = {path: match["split"] if match else path.stem for path, match in matches.items()}
    sharded = [path for path in files if matches[path]]
    names = sorted(set(splits.values()))
    wanted = split.strip("/")
    if wanted:
        chosen = [path for path in files if splits[path] == wanted]
    elif len(names) == 1 or not sharded:
        chosen = files
    else:
        chosen = []
    if not chosen or (not wanted and len(names) > 1 and _are_splits(names)):
        raise ValueError(
            f"{folder}: holds {', '.join(names)}; say which one with under (data.under=NAME, --under NAME)"
            if files
            else f"{folder}: no *.parquet in it"
        )
    _check_complete(folder, [match for path in chosen if (match := matches[path])])
    return chosen


def _are_splits(names: Sequence[str]) -> bool:
    """Whether names are the hub's usual words for splits, which are not to be mixed unasked."""
    return bool(set(names) & {"train", "test", "validation", "val", "valid", "dev"})


def _check_complete(folder: Path, matches: list[re.Match[str]]) -> None:
    """Every shard of ``-of-N`` is there."""
    counts = {int(match["count"]) for match in matches}
    if not matches:
        return
    if len(counts) > 1:
        raise ValueError(f"{folder}: shards of {' and '.join(map(str, sorted(counts)))} mixed")
    missing = sorted(set(range(counts.pop())) - {int(match["number"]) for match in matches})
    if missing:
        raise ValueError(
            f"{folder}: shard {missing[0]:0{len(matches[0]['number'])}d} of "
            f"{matches[0]['split']}-*-of-{matches[0]['count']} is missing ({len(missing)} in all)"
        )


def top_files(folder: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """Files and subfolders directly in a folder, hidden ones left out, sorted."""
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError as error:
        raise ValueError(f"{folder}: folder cannot be read: {error.strerror}") from None
    seen = [path for path in entries if not path.name.startswith(".")]
    return [path for path in seen if path.is_file()], [path for path in seen if path.is_dir()]
