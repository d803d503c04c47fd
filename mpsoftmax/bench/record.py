"""What figures depend on besides the code that is measured, and where they are kept."""

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

Row = Mapping[str, object]


def machine() -> dict[str, object]:
    """CPU, cores, torch, threads, load, commit, date."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_1min": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def cpu_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def commit() -> str:
    """The package's git commit, with `+` where tracked files differ from it; empty outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        short = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git on this machine
        return ""
    return short + ("+" if short and changed else "")


def append(path: Path, rows: Sequence[Row]) -> None:
    """Lines of CSV below those that the file holds; a column that some lines lack is empty there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    everything: list[Row] = []
    if path.exists():
        with path.open(newline="") as file:
            everything += list(csv.DictReader(file))
    everything += rows
    columns = list(dict.fromkeys(name for row in everything for name in row))
    written = path.with_name(path.name + ".new")
    with written.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, restval="")
        writer.writeheader()
        writer.writerows(everything)
    written.replace(path)
