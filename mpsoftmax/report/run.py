"""A run folder, read for the page: whatever is missing or damaged becomes a note, never an error."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpsoftmax.config.loading import read_yaml
from mpsoftmax.track.redaction import redacted
from mpsoftmax.track.run_record import CLASSES, FOLDER, SESSIONS

MOST_BYTES = 512 * 2**20
"""Of one file; a larger one is no file of ours."""
ROWS_READ = 1000
"""Of a table of classes."""

Tree = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A CSV file: its first rows, and how many there are."""

    columns: list[str]
    rows: list[list[str]]
    num_rows: int


@dataclass(frozen=True)
class Run:
    """What is known of one run.

    Attributes:
        folder: The run folder.
        name: Its last part; runs compared on one page that share it are told apart by their parents.
        config: Resolved, without secrets; empty where unreadable.
        lines: metrics.jsonl: of steps that were taken again the last ones, numbers that are not finite None.
        sessions: Processes of the run: RUN/report/sessions.jsonl.
        evaluations: By set, what its newest evaluation left: RUN/report/evaluation-SET.json.
        classes: RUN/report/classes.json.
        links: links.jsonl.
        tables: merged.csv and duplicates.csv, where they are.
        checkpoints: Steps of checkpoints in the folder, ascending.
        notes: What could not be read.
    """

    folder: Path
    name: str
    config: Tree
    lines: list[Tree]
    sessions: list[Tree]
    evaluations: dict[str, Tree]
    classes: Tree | None
    links: list[Tree]
    tables: dict[str, Table]
    checkpoints: list[int]
    notes: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Tree]:
        """Lines of metrics.jsonl of that kind."""
        return [line for line in self.lines if line["kind"] == kind]

    def setting(self, path: str) -> Any:
        """A setting of the configuration by its path; None where it is not there."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: it holds neither config.yaml nor metrics.jsonl.
    """
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise ValueError(
            f"run: {folder} holds neither config.yaml nor metrics.jsonl; allowed: a folder that `mpsoftmax "
            "train` made"
        )
    notes: list[str] = []
    lines = known_lines(read_lines(folder / "metrics.jsonl", notes))
    return Run(
        folder=folder,
        name=folder.resolve().name,
        config=read_config(folder / "config.yaml", notes),
        lines=lines,
        sessions=stepped(read_lines(folder / FOLDER / SESSIONS, notes)),
        evaluations=read_evaluations(folder / FOLDER, notes),
        classes=checked(folder / FOLDER / CLASSES, classes_fit, notes),
        links=stepped(read_lines(folder / "links.jsonl", notes)),
        tables=read_tables(folder, notes),
        checkpoints=sorted(
            int(path.name.removeprefix("step-"))
            for path in (folder / "checkpoints").glob("step-*")
            if path.name.removeprefix("step-").isdecimal()
        ),
        notes=notes,
    )


def read_text(path: Path, notes: list[str]) -> str | None:
    """A text file; None where there is none, or it cannot be read, which is noted."""
    if not path.exists():
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, more than such a file can have")
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return None


def read_config(path: Path, notes: list[str]) -> Tree:
    """config.yaml without what looks like a secret."""
    if not path.exists():
        notes.append("config.yaml is missing")
        return {}
    try:
        return redacted(read_yaml(path))
    except ValueError as error:
        notes.append(str(error))
        return {}


def read_lines(path: Path, notes: list[str]) -> list[Tree]:
    """A file of one JSON object a line; others are left out and counted."""
    found, damaged = [], 0
    for text in (read_text(path, notes) or "").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            found.append(cleaned(line))
        else:
            damaged += 1
    if damaged:
        notes.append(f"{path.name}: {damaged} damaged line{'s' * (damaged > 1)} left out")
    return found


def cleaned(value: Any) -> Any:
    """Numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stepped(lines: list[Tree]) -> list[Tree]:
    """Lines that have a kind and a step."""
    return [
        line
        for line in lines
        if isinstance(line.get("kind"), str) and type(line.get("step")) is int
    ]


def known_lines(lines: list[Tree]) -> list[Tree]:
    """Lines of a kind and a step, in the order of steps; of several of a step (and set) the last."""
    newest: dict[tuple[Any, ...], Tree] = {}
    for line in stepped(lines):
        newest[line["kind"], line["step"], str(line.get("set", ""))] = line
    return sorted(newest.values(), key=lambda line: line["step"])


def read_evaluations(folder: Path, notes: list[str]) -> dict[str, Tree]:
    """By set."""
    found = {}
    for path in sorted(folder.glob("evaluation-*.json")):
        tree = checked(path, evaluation_fits, notes)
        if tree is not None:
            found[str(tree["set"])] = tree
    return found


def checked(path: Path, fits: Callable[[Tree], bool], notes: list[str]) -> Tree | None:
    """A JSON file of the layout that is expected."""
    text = read_text(path, notes)
    if text is None:
        return None
    try:
        tree = cleaned(json.loads(text))
        if isinstance(tree, dict) and fits(tree):
            return tree
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    notes.append(f"{path.name} is damaged and left out")
    return None


def evaluation_fits(tree: Tree) -> bool:
    """Whether evaluation-SET.json has what the page reads."""
    curves = tree["curves"]
    counts = [curves["genuine"], curves["impostor"]]
    pictures = [
        picture
        for kind in ("genuine", "impostor")
        for pair in tree["hardest"][kind]
        for picture in pair["pictures"]
    ]
    return (
        isinstance(tree["set"], str)
        and isinstance(tree["verification"]["accuracy"], float)
        and len(curves["far"]) == len(curves["tar"]) > 0
        and all(len(one) == len(curves["edges"]) - 1 and sum(one) > 0 for one in counts)
        and all(one.startswith(("data:image/png;", "data:image/jpeg;")) for one in pictures)
    )


def classes_fit(tree: Tree) -> bool:
    """Whether classes.json has what the page reads."""
    columns = tree["classes"]
    wanted = ("id", "name", "images", "within", "other_name", "other_cosine", "angle_rad")
    return len({len(columns[name]) for name in wanted}) == 1 and len(columns["id"]) > 0


def read_tables(folder: Path, notes: list[str]) -> dict[str, Table]:
    """merged.csv and duplicates.csv."""
    found = {}
    for name in ("merged", "duplicates"):
        text = read_text(folder / f"{name}.csv", notes)
        rows = list(csv.reader((text or "").splitlines()))
        if rows:
            found[name] = Table(rows[0], rows[1 : ROWS_READ + 1], len(rows) - 1)
    return found


def told_apart(runs: list[Run]) -> list[Run]:
    """Runs whose names differ: those that share one get their parent folder's too, or a number."""
    shared = Counter(run.name for run in runs)
    names = [
        "/".join(run.folder.resolve().parts[-2:]) if shared[run.name] > 1 else run.name
        for run in runs
    ]
    again = Counter(names)
    return [
        replace(run, name=f"{name} ({k + 1})" if again[name] > 1 else name)
        for k, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
