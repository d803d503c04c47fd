"""Tens of millions of classes on one machine: rows in a file, sampled candidates.

    python benchmarks/many_classes.py --classes 10000000 100000000

Trains the head alone, one process: labels come from 20,000 classes spread over the whole range, every one of
them visited once a round; a sample's feature is its class's direction plus noise. Rows and momentum are
bfloat16 in a mapped file, untouched rows exactly lazy. Reported: mean loss of every round, step time, the
largest anonymous memory (RssAnon: what is not backed by a file), what the file takes on the disk, and the
checkpoint: its size, time, and whether a second head that loads it takes the same next steps.
"""

import argparse
import json
import os
import stat
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp  # noqa: TID251
from torch import Tensor

from mpsoftmax import ArcFace, ModelParallelSoftmax, RowSGD, Uniform
from mpsoftmax.bench import record
from mpsoftmax.track.memory import resident_bytes
from mpsoftmax.train.checkpoint import empty_like_stored, read_tensors, stored_tensors

ROUNDS, RESUMED_STEPS = 3, 8


def disk_mib(folder: Path) -> float:
    """What the files of a folder take on the disk, in MiB."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files) / 2**20


def unlinked_mib(folder: Path) -> float:
    """What files of this process that have no name any more take on the disk of a folder, in MiB."""
    stats = [os.fstat(int(path.name)) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    disk = folder.stat().st_dev
    gone = [
        one
        for one in stats
        if stat.S_ISREG(one.st_mode) and one.st_dev == disk and not one.st_nlink
    ]
    return sum({one.st_ino: one.st_blocks * 512 for one in gone}.values()) / 2**20


class Stream:
    """Batches: the step decides which classes, their directions never change."""

    def __init__(self, arguments: argparse.Namespace, classes: int) -> None:
        self.dim, self.batch, self.noise = arguments.dim, arguments.batch, arguments.noise
        self.labels = (torch.arange(arguments.visited) * classes) // arguments.visited
        self.steps = arguments.visited // arguments.batch
        directions = torch.Generator().manual_seed(1)
        self.directions = torch.randn(arguments.visited, self.dim, generator=directions).half()

    def chosen(self, step: int) -> Tensor:
        """Places int64 [batch] of a step's classes: a random order anew every round."""
        order = torch.randperm(
            len(self.labels), generator=torch.Generator().manual_seed(step // self.steps)
        )
        return order[(step % self.steps) * self.batch :][: self.batch]

    def features(self, step: int, chosen: Tensor) -> Tensor:
        """[batch, D]: direction plus noise of the same size times `noise`."""
        drawn = torch.randn(
            len(chosen), self.dim, generator=torch.Generator().manual_seed(10**6 + step)
        )
        return (self.directions[chosen].float() + self.noise * drawn).requires_grad_()


def new_head(arguments: argparse.Namespace, classes: int, folder: Path) -> ModelParallelSoftmax:
    """A mapped head whose step samples `sample` classes."""
    return ModelParallelSoftmax(
        arguments.dim,
        classes,
        objective=ArcFace(64.0, 0.5),
        candidates=Uniform(arguments.sample / classes),
        optimizer=RowSGD(lr=arguments.lr),
        untouched="lazy",
        row_dtype=torch.bfloat16,
        storage="mapped",
        storage_dir=folder,
        batch_capacity=arguments.batch,
    )


def train(
    head: ModelParallelSoftmax, stream: Stream, first: int, last: int
) -> tuple[list[float], list[float], float]:
    """Losses, seconds and largest RssAnon of steps first..last-1."""
    losses, seconds, memory = [], [], 0.0
    for step in range(first, last):
        began = time.perf_counter()
        chosen = stream.chosen(step)
        labels = stream.labels[chosen]
        head.prefetch(labels)
        loss = head(stream.features(step, chosen), labels)
        loss.backward()
        head.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
        memory = max(memory, resident_bytes("RssAnon") / 2**20)
    return losses, seconds, memory


def measure(arguments: argparse.Namespace, classes: int, scratch: Path) -> dict[str, object]:
    """One table: train, save, load into a second head, go on with both."""
    stream, rows, saved = Stream(arguments, classes), scratch / "rows", scratch / "checkpoint"
    began = time.perf_counter()
    head = new_head(arguments, classes, rows)
    made_s = time.perf_counter() - began
    end = ROUNDS * stream.steps
    losses, seconds, memory = train(head, stream, 0, end)
    began = time.perf_counter()
    state = head.state_dict()
    num_rows, on_disk = state["touched.0.ids"].numel(), unlinked_mib(rows)
    dcp.save(state, checkpoint_id=saved)
    saved_s, memory = time.perf_counter() - began, max(memory, resident_bytes("RssAnon") / 2**20)
    following, *_ = train(head, stream, end, end + RESUMED_STEPS)
    del state
    other = new_head(arguments, classes, scratch / "other")
    began = time.perf_counter()
    wanted = {name: empty_like_stored(entry) for name, entry in stored_tensors(saved).items()}
    read_tensors(saved, wanted)
    other.load_state_dict(wanted)
    loaded_s, memory = time.perf_counter() - began, max(memory, resident_bytes("RssAnon") / 2**20)
    resumed, _, more = train(other, stream, end, end + RESUMED_STEPS)
    rounds = [
        round(statistics.fmean(losses[k * stream.steps : (k + 1) * stream.steps]), 3)
        for k in range(ROUNDS)
    ]
    return {
        "classes": classes,
        "dim": arguments.dim,
        "batch": arguments.batch,
        "sample": arguments.sample,
        "visited": arguments.visited,
        "loss_of_rounds": json.dumps(rounds),
        "loss_fell_by": round(1 - rounds[-1] / rounds[0], 3),
        "made_s": round(made_s, 2),
        "step_s": round(statistics.median(seconds), 4),
        "step_s_max": round(max(seconds), 3),
        "rss_anon_mib": round(max(memory, more)),
        "rows_touched": num_rows,
        "disk_mib": round(on_disk),
        "dense_mib": round(classes * arguments.dim * 4 / 2**20),
        "checkpoint_mib": round(disk_mib(saved)),
        "saved_s": round(saved_s, 1),
        "loaded_s": round(loaded_s, 1),
        "resumed_equal": resumed == following,
    }


def main() -> None:
    """Measure every number of classes; print and append a row each."""
    parser = argparse.ArgumentParser(description="The head at very many classes, rows in a file")
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sample", type=int, default=2048, help="candidates of a step")
    parser.add_argument("--visited", type=int, default=20_000, help="classes that have samples")
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--folder", help="where the scratch files go; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="append CSV rows to this file")
    arguments = parser.parse_args()
    for classes in arguments.classes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            row = {**measure(arguments, classes, Path(scratch)), **record.machine()}
        print("\n".join(f"{key:16} {value}" for key, value in row.items()), "\n", flush=True)
        if arguments.out is not None:
            record.append(arguments.out, [row])


if __name__ == "__main__":
    main()
