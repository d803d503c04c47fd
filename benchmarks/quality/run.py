"""The quality benchmarks: every claim's runs, two at a time, resumable.

    python benchmarks/quality/run.py --list                          # what there is to do, and about how long
    python benchmarks/quality/run.py --jobs 2 --hours 1.3            # go on where it stopped
    python benchmarks/quality/run.py --claim baskets --stage screen
    python benchmarks/quality/run.py --check                     # a few steps of each method, nothing kept
    python benchmarks/quality/report.py                              # tables and plots into docs/evidence/

A run is one process on one thread; its row is appended to results.csv, and a run that has its row is skipped.
A run that fails is reported with its error, leaves no row, and is tried again the next time.
The data is read from ../shared/data beside the repository and from fonts (sources.py).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import date
from pathlib import Path
from typing import Any

import claims
import results
from claims import Run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECK_STEPS = 8


def commit() -> str:
    """Short hash of HEAD, with a + where the package or these files differ from it."""
    paths = ["mpsoftmax", "kernels", "benchmarks/quality/*.py"]
    hash_ = _git("rev-parse", "--short", "HEAD")
    return hash_ + ("+" if _git("status", "--porcelain", "--", *paths) else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def execute(run: Run, timeout_s: float) -> dict[str, Any]:
    """Run in a process of its own on one thread; the row.

    Raises:
        RuntimeError: it failed or took too long; with the end of what it printed.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "one_run.py")],
            input=json.dumps(run.description()),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"stopped after {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-6:]))
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    row = {**run.description(), "date": date.today().isoformat(), "commit": commit(), **measured}
    return {name: row[name] for name in results.COLUMNS}


class Progress:
    """Prints one line a run and remembers what failed."""

    def __init__(self, total: int, keep: bool) -> None:
        self.total, self.keep = total, keep
        self.num_done = 0
        self.failed: list[str] = []

    def finish(self, run: Run, future: "Future[dict[str, Any]]") -> None:
        """Keep the row of a finished run, or report its error."""
        self.num_done += 1
        error = future.exception()
        if error is None:
            row = future.result()
            if self.keep:
                results.append(row)
            recall = row["metrics"]["recall_at_1"]
            outcome = f"Recall@1 {recall:.2f}  {row['total_s']:.0f} s"
        else:
            outcome = f"FAILED\n{error}"
            self.failed.append(
                f"{run.title()}: {(str(error).splitlines() or [type(error).__name__])[-1]}"
            )
        print(f"[{self.num_done}/{self.total}] {run.title()}: {outcome}", flush=True)


def work(runs: list[Run], jobs: int, deadline: float, timeout_s: float, keep: bool) -> list[str]:
    """Execute runs in order, `jobs` at a time, starting none after the deadline; what failed."""
    progress, queue = Progress(len(runs), keep), iter(runs)
    with ThreadPoolExecutor(jobs) as pool:
        pending: dict[Future[dict[str, Any]], Run] = {}
        while True:
            for run in _startable(queue, jobs - len(pending), deadline):
                pending[pool.submit(execute, run, timeout_s)] = run
            if not pending:
                return progress.failed
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                progress.finish(pending.pop(future), future)


def _startable(queue: Iterator[Run], num: int, deadline: float) -> Iterator[Run]:
    for _ in range(num):
        if time.monotonic() >= deadline:
            return
        run = next(queue, None)
        if run is None:
            return
        yield run


def missing(runs: list[Run]) -> list[Run]:
    """The runs that have no row yet."""
    present = {results.key_of(row) for row in results.read()}
    return [run for run in runs if results.key_of(run.description()) not in present]


def first_of_each_method(runs: list[Run]) -> list[Run]:
    """One short run of every combination of parts, for a check."""
    first: dict[str, Run] = {}
    for run in runs:
        parts = [run.settings.get(name) for name in ("head", "labels", "linking")]
        first.setdefault(results.packed(parts), run)
    return [run.shortened(CHECK_STEPS) for run in first.values()]


def wanted(run: Run, arguments: argparse.Namespace) -> bool:
    """Whether the command line asks for this run."""
    of_seeds = arguments.seeds is None or run.seed in arguments.seeds
    of_dataset = arguments.dataset is None or arguments.dataset in run.dataset
    of_method = arguments.method is None or arguments.method in run.method
    return of_seeds and of_dataset and of_method


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Quality benchmarks, resumable")
    parser.add_argument("--claim", nargs="+", choices=list(claims.CLAIMS), default=None)
    parser.add_argument("--stage", choices=claims.STAGES, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    parser.add_argument("--method", help="only methods whose name contains this")
    parser.add_argument("--dataset", help="only data sets whose name contains this")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--hours", type=float, default=24.0, help="start no run after this time")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a run may take")
    parser.add_argument("--list", action="store_true", help="print the queue and stop")
    parser.add_argument("--check", action="store_true", help="a few steps of each, nothing kept")
    return parser.parse_args()


def main() -> int:
    """Plan, skip what is there, execute; the second stage is planned from the first's results."""
    arguments = parsed()
    deadline = time.monotonic() + 3600 * arguments.hours
    failed: list[str] = []
    for stage in [arguments.stage] if arguments.stage else claims.STAGES:
        runs = claims.planned(arguments.claim or list(claims.CLAIMS), stage, results.read())
        runs = [run for run in runs if wanted(run, arguments)]
        runs = first_of_each_method(runs) if arguments.check else missing(runs)
        seconds = sum(run.expected_s() for run in runs)
        print(
            f"{stage}: {len(runs)} runs, about {seconds / 60 / arguments.jobs:.0f} min", flush=True
        )
        if arguments.list:
            print(*(f"  {run.title()}" for run in runs), sep="\n")
        else:
            keep = not arguments.check
            failed += work(runs, arguments.jobs, deadline, arguments.timeout, keep)
    if failed:
        print(f"{len(failed)} failed:", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
