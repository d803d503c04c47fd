"""Reading a file at given offsets, from any process."""

import os
import stat
from pathlib import Path
from typing import Any

from mpsoftmax.data.near_names import near_name


class PositionalFile:
    """A file read with ``pread``: no shared position, so forked workers cannot disturb each other.

    The handle opens at the first read and is left out of a pickle.

    Args:
        path: The file.

    Raises:
        ValueError: The path is missing or not a regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd: int | None = None
        try:
            info = os.stat(self.path)
        except FileNotFoundError:
            raise ValueError(f"{self.path}: no such file{near_name(self.path)}") from None
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{self.path}: not a regular file")
        self.size = info.st_size

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Exactly ``length`` bytes at ``offset``; ``what`` names them in the error.

        Raises:
            ValueError: The file ends before; nothing is allocated then.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(
                f"{self.path}: expected {length} bytes of {what} at offset {offset},"
                f" but the file has {self.size} bytes"
            )
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ValueError(f"{self.path}: cannot be read: {error.strerror}") from None
        data = os.pread(self._fd, length, offset)
        while len(data) < length:  # the kernel cuts reads above 2 GiB
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise ValueError(f"{self.path}: shrank while being read, at offset {offset}")
            data += more
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": None}

    def __del__(self) -> None:
        fd = self.__dict__.get("_fd")
        if fd is not None:
            os.close(fd)
