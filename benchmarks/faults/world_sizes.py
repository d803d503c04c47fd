"""Whether a training whose number of ranks changes at every restart ends as good as one that was left alone.

    python benchmarks/faults/world_sizes.py --seeds 0 1 2

Trains the embedded default (configs/quickstart.yaml, characters held out) three times for each seed: on one
rank and on four, undisturbed; and on 4, 3, 2, 1 and 4 ranks in turn, all of them killed after each fifth of
the way, so that what was done since the last checkpoint is done again by another number. Prints the figures
at the end and their spread over the seeds. Batch norm's statistics are of a rank's samples: the number of
ranks is a setting of the training, and the third is to end between the other two, or no farther off than
seeds make.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from launching import ROOT, ranks_of, start

from mpsoftmax.launcher import on_this_machine

VARIANTS = {"one rank": (1,), "four ranks": (4,), "changing": (4, 3, 2, 1, 4)}
"""Numbers of ranks, one after the other."""
PATIENCE_S = 1800.0
FIGURES = ("accuracy", "recall_at_1")


def main() -> None:
    """Train, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one, removed")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="world-sizes-"))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    try:
        for seed in options.seeds:
            for name, worlds in VARIANTS.items():
                settings = [
                    f"train.steps={options.steps}",
                    f"train.batch_size={options.batch}",
                    f"train.seed={seed}",
                    f"data.seed={seed}",
                ]
                run = folder / f"{name.replace(' ', '-')}-{seed}"
                figures = train(run, worlds, settings, options.steps)
                found[name].append(figures)
                print(f"seed {seed}, {name}: {figures}", flush=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    report(found)


def train(run: Path, worlds: tuple[int, ...], settings: list[str], steps: int) -> dict[str, float]:
    """A training on each number of ranks in turn, up to its share of the steps; the last evaluation."""
    words = [
        str(ROOT / "configs" / "quickstart.yaml"),
        *settings,
        f"run.dir={run}",
        "train.log_every=1",
        f"train.eval_every={steps}",
        f"train.checkpoint_every={max(1, steps // 12)}",
        "data.workers=0",
        "track.wandb=disabled",
    ]
    for turn, ranks in enumerate(worlds, start=1):
        end = None if turn == len(worlds) else steps * turn // len(worlds)
        run_until(run, ranks, words, end)
    lines = lines_of(run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, steps + 1))
    last = [line for line in lines if line["kind"] == "eval"][-1]
    return {
        name: value
        for name, value in last.items()
        if isinstance(value, float) and name.rpartition("/")[2] in FIGURES
    }


def run_until(run: Path, ranks: int, words: list[str], end: int | None) -> None:
    """Train on `ranks` ranks, and kill all of them once step `end` is logged; None: to its own end."""
    run.parent.mkdir(parents=True, exist_ok=True)
    agent = start(on_this_machine(ranks, ["-m", "mpsoftmax", "train", *words]), run)
    deadline = time.monotonic() + PATIENCE_S
    while agent.poll() is None:
        if end is not None and any(line["step"] >= end for line in lines_of(run)):
            kill(agent, run)
            return
        if time.monotonic() > deadline:
            kill(agent, run)
            raise RuntimeError(f"not done after {PATIENCE_S:.0f} s: see {run}.log")
        time.sleep(0.05)
    if agent.returncode or end is not None:
        raise RuntimeError(f"ended with status {agent.returncode}: see {run}.log")


def kill(agent: "subprocess.Popen[bytes]", run: Path) -> None:
    """SIGKILL of the ranks and their agent."""
    ranks = ranks_of(agent, run)
    agent.kill()
    agent.wait()
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def lines_of(run: Path) -> list[dict[str, object]]:
    """Whole lines of metrics.jsonl so far."""
    metrics = run / "metrics.jsonl"
    text = metrics.read_text() if metrics.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """Mean and spread over the seeds of each variant."""
    for name in found["changing"][0]:
        said = []
        for variant, runs in found.items():
            values = [figures[name] for figures in runs]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            said.append(f"{variant} {statistics.fmean(values):.4f} +- {spread:.4f}")
        print(f"{name} (standard deviation over seeds): {', '.join(said)}")


if __name__ == "__main__":
    main()
