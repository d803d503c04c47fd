"""The CSV of all runs: one row a run, appended under a lock, read back as dictionaries."""

import csv
import fcntl
import json
import os
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("results.csv")
KEY = ("claim", "dataset", "method", "settings", "seed")
COLUMNS = (
    "claim",
    "stage",
    "dataset",
    "method",
    "seed",
    "metrics",
    "head_ms_per_step",
    "head_s",
    "train_s",
    "total_s",
    "commit",
    "date",
    "settings",
)
JSON_COLUMNS = ("metrics", "settings")
NUMBERS = ("head_ms_per_step", "head_s", "train_s", "total_s")


def packed(value: object) -> str:
    """JSON without spaces and with sorted keys: equal settings are equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What a run is known by: a run whose key is in the CSV is not run again."""
    settings = {**row, "settings": packed(row["settings"])}
    return tuple(str(settings[name]) for name in KEY)


def read(path: Path = PATH) -> list[dict[str, Any]]:
    """All rows, JSON columns and numbers decoded; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row.update({name: json.loads(row[name]) for name in JSON_COLUMNS})
        row.update({name: float(row[name]) for name in NUMBERS})
        row["seed"] = int(row["seed"])
    return rows


def append(row: dict[str, Any], path: Path = PATH) -> None:
    """Add one row with one write under a lock; a header if the file is new or empty."""
    values = {**row, **{name: packed(row[name]) for name in JSON_COLUMNS}}
    with path.open("a+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = _Lines()
        writer = csv.DictWriter(text, list[Any](COLUMNS), lineterminator="\n")
        if file.seek(0, os.SEEK_END) == 0:
            writer.writeheader()
        writer.writerow(values)
        file.write("".join(text.lines))
        file.flush()
        os.fsync(file.fileno())


class _Lines:
    """What the csv module writes to, so that header and row reach the file together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)
