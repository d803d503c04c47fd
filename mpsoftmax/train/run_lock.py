"""One training a run folder: a lock that its process holds, and that ends with it, however it ends."""

import errno
import fcntl
import os
import socket
import time
from datetime import datetime
from pathlib import Path

FILE = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)
WAIT_S = 30.0


class RunLock:
    """A POSIX lock on RUN/.lock; on network file systems it holds between machines where they have locks.

    Args:
        folder: The run folder.
        wait_s: How long to wait for one that is ending, as a killed job's ranks do while it is started again.

    Attributes:
        note: What to tell the user where the file system has no locks; else None.

    Raises:
        ValueError: another process holds it.
    """

    def __init__(self, folder: Path, wait_s: float = WAIT_S) -> None:
        self.note: str | None = None
        self._file = (folder / FILE).open("a+", encoding="utf-8")
        end = time.monotonic() + wait_s
        while (error := self._error()) is not None:
            if error.errno not in HELD:
                self.note = (
                    f"run.dir: {folder} cannot be locked ({error.strerror}): see to it that no other "
                    "training writes there"
                )
                return
            if time.monotonic() >= end:
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                self._file.close()
                raise ValueError(
                    f"run.dir: {folder} is in use by {holder}; allowed: another run.dir, or to wait for "
                    "its end"
                )
            time.sleep(0.1)
        self._file.truncate(0)
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        self._file.flush()

    def _error(self) -> OSError | None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        """Let others in."""
        self._file.close()

    def __del__(self) -> None:
        """Of a training that could not begin."""
        if hasattr(self, "_file"):
            self._file.close()
