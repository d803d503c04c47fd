"""Files of one JSON object a line, which a run that goes on cuts back to where it goes on from."""

import contextlib
import errno
import json
import sys
from pathlib import Path
from typing import Any

from mpsoftmax.data.new_files import replaced
from mpsoftmax.track.protocol import Callback, Ending, Line, RunStart


class JsonLines:
    """A file of lines that have a "step"; of those that are there `kept` stay, the others are cut first."""

    def __init__(self, path: Path, kept: list[dict[str, Any]]) -> None:
        self.kept = kept
        """Lines that were there already."""
        self._path = path
        if path.exists():
            self._keep(kept)
        self._file = path.open("ab", buffering=0)
        self._unwritten, self._warned = b"", False

    def _keep(self, lines: list[dict[str, Any]]) -> None:
        with replaced(self._path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.kept = lines

    def drop(self, lines: list[dict[str, Any]]) -> None:
        """Cut lines that were there already; before the first `write`."""
        self._file.close()
        self._keep([line for line in self.kept if line not in lines])
        self._file = self._path.open("ab", buffering=0)

    def write(self, line: Line) -> None:
        """Append; on a full disk, which a checkpoint given up may free again, keep for the next time."""
        self._unwritten += json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not self._warned:
                sys.stderr.write(
                    f"{self._path}: {error.strerror}: lines wait until there is room\n"
                )
            self._warned = True

    def _write(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Write what waits, and close the file.

        Raises:
            OSError: the disk is still full.
        """
        with contextlib.closing(self._file):
            self._write()


def lines_up_to(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The whole lines of a file that are not later than `last_step`; none where there is no file."""
    if not path.exists():
        return []
    found = [parsed(text, last_step) for text in path.read_text().splitlines()]
    return [line for line in found if line is not None]


def parsed(text: str, last_step: int) -> dict[str, Any] | None:
    """A line, if it is whole (a kill may have cut it short) and not later than `last_step`; else None."""
    try:
        line = json.loads(text)
        return line if int(line["step"]) <= last_step else None
    except (ValueError, KeyError, TypeError):
        return None


class MetricsFile(Callback):
    """RUN/metrics.jsonl."""

    NAME = "metrics.jsonl"

    def on_start(self, run: RunStart) -> None:
        """Cut and open."""
        self._lines = JsonLines(run.folder / self.NAME, [dict(line) for line in run.written])

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Lines of earlier processes of this run that were kept."""
        return self._lines.kept

    def lacks_evaluation(self, step: int, num_sets: int) -> bool:
        """Whether the evaluation at `step` must be done (again): lines of a part of it are cut."""
        found = [line for line in self.kept if line["kind"] == "eval" and line["step"] == step]
        if len(found) == num_sets:
            return False
        self._lines.drop(found)
        return True

    def on_line(self, line: Line) -> None:
        """Append and flush."""
        self._lines.write(line)

    def on_end(self, ending: Ending) -> None:
        """Close the file."""
        self._lines.close()
