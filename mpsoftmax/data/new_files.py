"""Files that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each of ``paths``; rename them all when the block succeeds.

    The temporary files lie in the same folder. They are renamed in the order given, so name the
    file that readers look for last. A temporary path never written is skipped. On any error
    everything is removed again.

    Raises:
        ValueError: One of ``paths`` exists already: nothing is ever overwritten.
    """
    for path in paths:
        if os.path.lexists(path):
            raise ValueError(f"{path} exists already: remove it or choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tuple(path.with_name(f".{path.name}.partial-{os.getpid()}") for path in paths)
    for part in temporary:
        _remove(part)  # left by a killed process of the same number
    done: list[Path] = []
    try:
        yield temporary
        for part, path in zip(temporary, paths, strict=True):
            if part.exists():
                _sync(part)
                os.rename(part, path)
                done.append(path)
    except BaseException:
        for path in (*temporary, *done):
            _remove(path)
        raise


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes that file's place when the block succeeds.

    On any error the old file stays as it is, and the temporary one is removed.
    """
    part = path.with_name(f".{path.name}.new")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        _remove(part)
        raise


def _sync(path: Path) -> None:
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
