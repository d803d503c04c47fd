"""Kills at random moments, also while a checkpoint is written; at the end nothing may differ.

    python benchmarks/faults/chaos.py --kills 50

For each number of ranks one training runs undisturbed and one is killed again and again under torchrun:
one rank, all ranks, or the agent with them, at random moments, every third time while a checkpoint is being
written. After each kill every checkpoint must be undamaged. At the end weights, optimiser state, random
generators and metrics (timings apart) must be identical to the bit. Exit status 0 says that all of it was so.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from launching import ranks_of, start

from mpsoftmax.comm import connect, disconnect
from mpsoftmax.launcher import on_this_machine
from mpsoftmax.train.checkpoint import empty_like_stored, read_tensors, stored_tensors
from mpsoftmax.train.sums import damage

SETTINGS = (
    "data.train=synthetic",
    "data.synthetic={num_classes: 203, images_per_class: 4}",
    "data.image_size=[16, 16]",
    "data.augment=[{kind: flip}, {kind: crop, pad: 2}]",
    "data.workers=0",
    "backbone={name: small, embedding_dim: 32}",
    "backbone.options={widths: [8, 16], depths: [1, 1], strides: [2, 2], norm: batch, dropout: 0.2}",
    "head.objective={kind: cosface, scale: 16, margin: 0.1}",
    "head.candidates={kind: uniform, rate: 0.5}",
    "head.untouched=lazy",
    "train.batch_size=24",
    "train.log_every=1",
    "train.checkpoint_every=4",
    "train.timeout_s=20",
    "track.wandb=disabled",
)
STEPS_PER_KILL = 45
PATIENCE_S = 600.0


class Training:
    """One training of some ranks, whose processes can be found and killed."""

    def __init__(self, folder: Path, ranks: int, steps: int, restarts: int) -> None:
        self.folder = folder
        config = folder.parent / "base.yaml"
        config.write_text("{}\n")
        train = ["-m", "mpsoftmax", "train", str(config), *SETTINGS]
        train += [f"train.steps={steps}", f"run.dir={folder}"]
        self._command = on_this_machine(ranks, ["--max-restarts", str(restarts), *train])
        self.start()

    def start(self) -> None:
        """Start the agent, which starts the ranks."""
        self.agent = start(self._command, self.folder)

    def kill(self, what: str, chance: random.Random) -> None:
        """SIGKILL of one rank, of all, or of the agent and all, which is started again."""
        ranks = ranks_of(self.agent, self.folder)
        if what == "one rank":
            ranks = [chance.choice(ranks)]
        elif what == "agent":
            self.agent.kill()
            self.agent.wait()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if what == "agent":
            self.start()

    def steps(self) -> int:
        """Lines in metrics.jsonl."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_until(condition, training: Training, patience_s: float = PATIENCE_S) -> None:  # noqa: ANN001
    """Poll, while the training runs."""
    end = time.monotonic() + patience_s
    while not condition():
        if training.agent.poll() is not None:
            raise RuntimeError(f"the training ended with status {training.agent.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"nothing moved for {patience_s:.0f} s")
        time.sleep(0.002)


def wait_for_progress(training: Training, steps: int) -> None:
    """Until that many steps were taken from where it resumes: lines behind that are cut first."""
    lowest = [training.steps()]

    def enough() -> bool:
        now = training.steps()
        lowest[0] = min(lowest[0], now)
        return now >= lowest[0] + steps

    wait_until(enough, training)


def disturb(training: Training, kills: int, chance: random.Random) -> list[dict[str, object]]:
    """Kill it `kills` times; what was killed, at which step, and what a look at the checkpoints found."""
    events, checkpoints = [], training.folder / "checkpoints"
    for number in range(kills):
        wait_for_progress(training, chance.randint(1, STEPS_PER_KILL - 5))
        time.sleep(chance.uniform(0.0, 0.05))
        saving = number % 3 == 2
        if saving:
            wait_until(lambda: any(checkpoints.glob("*.partial")), training)
            time.sleep(chance.uniform(0.0, 0.02))
        what = chance.choice(("one rank", "one rank", "all ranks", "agent"))
        event = {"step": training.steps(), "killed": what, "while_saving": saving}
        training.kill(what, chance)
        event["damage"] = look(checkpoints)
        events.append(event)
        print(f"  kill {number + 1}: {event}", flush=True)
    return events


def look(checkpoints: Path) -> list[str]:
    """What is wrong with the checkpoints; one that is pruned while it is read counts for nothing."""
    found = []
    for path in sorted(checkpoints.glob("step-*")):
        problems = damage(path) if path.name.removeprefix("step-").isdigit() else []
        if problems and path.exists() and path.samefile(checkpoints / "latest"):
            found.append(f"{path.name}: {'; '.join(problems)}")
    return found


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole."""
    tensors = {name: empty_like_stored(entry) for name, entry in stored_tensors(folder).items()}
    read_tensors(folder, tensors)
    return tensors


def metrics_of(folder: Path) -> list[dict[str, object]]:
    """Lines of metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def differences(a: Path, b: Path) -> list[str]:
    """In what two finished trainings differ."""
    found = [] if metrics_of(a) == metrics_of(b) else ["metrics.jsonl"]
    first, second = (tensors_of((one / "checkpoints" / "latest").resolve()) for one in (a, b))
    found += sorted(set(first) ^ set(second))
    return found + [
        name for name in first if name in second and not torch.equal(first[name], second[name])
    ]


def one_world(folder: Path, ranks: int, kills: int, seed: int) -> dict[str, object]:
    """Both trainings of one number of ranks, and what they differ in."""
    steps = STEPS_PER_KILL * max(kills, 1)
    whole = Training(folder / f"whole-{ranks}", ranks, steps, 0)
    if whole.agent.wait(3600):
        raise RuntimeError(f"the undisturbed training failed: see {folder}")
    print(f"{ranks} ranks: {steps} steps, {kills} kills", flush=True)
    disturbed = Training(folder / f"killed-{ranks}", ranks, steps, kills)
    try:
        events = disturb(disturbed, kills, random.Random(f"{seed} {ranks}"))
        status = disturbed.agent.wait(3600)
    finally:
        if disturbed.agent.poll() is None:
            disturbed.kill("all ranks", random.Random(0))
            disturbed.agent.kill()
    kept = [path for path in (disturbed.folder / "checkpoints").glob("step-*")]
    return {
        "ranks": ranks,
        "steps": steps,
        "kills": len(events),
        "while_saving": sum(bool(event["while_saving"]) for event in events),
        "status": status,
        "damaged": [*(line for event in events for line in event["damage"]), *look(kept[0].parent)],  # type: ignore[attr-defined]
        "different": differences(whole.folder, disturbed.folder)
        if not status
        else ["not finished"],
    }


def main() -> int:
    """Run the worlds; 0 where nothing differs and nothing was damaged."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--kills", type=int, default=50, help="in all")
    arguments.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    arguments.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    arguments.add_argument("--folder", type=Path, help="kept; default: a temporary one, removed")
    options = arguments.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    shares = [
        len(range(part, options.kills, len(options.ranks))) for part in range(len(options.ranks))
    ]
    began = time.monotonic()
    connect(60.0)  # a group of one, to read checkpoints
    try:
        worlds = [
            one_world(folder, ranks, kills, options.seed)
            for ranks, kills in zip(options.ranks, shares, strict=True)
        ]
    finally:
        disconnect()
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    good = not any(one["status"] or one["damaged"] or one["different"] for one in worlds)
    print(json.dumps({"good": good, "seconds": round(time.monotonic() - began), "worlds": worlds}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
