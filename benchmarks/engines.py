"""How far every engine lies from DDP: the equality table of docs/engines.md.

    python benchmarks/engines.py --write docs/engines.md

Small whole trainings (synthetic images, a small net with group norm, SGD with momentum, unequal shards and
shares) by `mpsoftmax train`'s own loop: DDP, and the same run by FSDP2 and DeepSpeed ZeRO 0 to 3. For every
combination of ranks, precision, accumulation, clipping and head: the largest |difference| of losses, backbone
weights and class rows after the last step. "rounding" is DDP against itself with every initial weight moved
by a unit in its last place: what differs no more than that is the same arithmetic in another order.
"""

import argparse
import itertools
import json
import subprocess
import tempfile
from pathlib import Path

import torch

from mpsoftmax.comm import Comm, connect, disconnect
from mpsoftmax.config import load
from mpsoftmax.launcher import on_this_machine
from mpsoftmax.train.checkpoint import empty_like_stored, read_tensors, stored_tensors
from mpsoftmax.train.loop import Trainer

BASE = (
    "data.train=synthetic",
    "data.synthetic={num_classes: 23, images_per_class: 4}",
    "data.image_size=[16, 16]",
    "data.augment=[{kind: flip}]",
    "data.workers=0",
    "backbone={name: small, embedding_dim: 16}",
    "backbone.options={widths: [8, 16], depths: [1, 1], strides: [2, 2], norm: group}",
    "train.steps=8",
    "train.batch_size=14",
    "train.log_every=1",
    "train.optimizer.lr=0.02",
    "train.schedule={kind: constant, warmup: 2}",
    "track.wandb=disabled",
)
HEADS = {
    "ArcFace": ("head.objective={kind: arcface, scale: 16, margin: 0.2}",),
    "D-Softmax-K": (
        "head.objective={kind: dsoftmax, scale: 16}",
        "head.candidates={kind: dsoftmax_k, rate: 0.5}",
    ),
}
ENGINES = {
    "rounding": "ddp",
    "fsdp2": "fsdp2",
    **{f"zero {stage}": f"{{kind: deepspeed, stage: {stage}}}" for stage in range(4)},
}
PRECISIONS, WORLDS = ("fp32", "bf16"), (2, 4)
NUDGE = 2.0**-24  # relative: rounds to one unit in the last place of a float32
START, END = "<!-- engines.py: table -->", "<!-- engines.py: end -->"


def settings(precision: str, accumulation: int, clip: bool, head: str) -> tuple[str, ...]:
    """One combination as overrides."""
    clipping = ("train.clip_norm=0.5",) if clip else ()
    numbers = (f"train.precision={precision}", f"train.accumulation={accumulation}")
    return (*BASE, *numbers, *clipping, *HEADS[head])


def combinations() -> list[tuple[str, int, bool, str]]:
    """(precision, accumulation, clipping, head)."""
    return list(itertools.product(PRECISIONS, (1, 2), (False, True), HEADS))


def train(folder: Path, overrides: tuple[str, ...], comm: Comm, *, nudged: bool) -> None:
    """One run."""
    trainer = Trainer(load(None, [*overrides, f"run.dir={folder}"]), comm)
    if nudged:
        generator = torch.Generator().manual_seed(7)  # the same on all ranks
        with torch.no_grad():
            for parameter in trainer.net.parameters():
                sign = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                parameter.add_(parameter * sign * NUDGE)
    trainer.run()


def left_by(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and all weights and rows, of a run; collective."""
    path = (folder / "checkpoints" / "latest").resolve()
    stored = stored_tensors(path)
    names = [n for n in stored if n.startswith("backbone.") or n == "head.weight"]
    tensors = {name: empty_like_stored(stored[name]) for name in names}
    read_tensors(path, tensors)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"], tensors


def distance(first: Path, second: Path) -> list[float]:
    """Largest |difference| of losses, backbone and class rows; collective."""
    (curve, a), (other, b) = left_by(first), left_by(second)
    apart = {name: float((a[name].double() - b[name].double()).abs().max()) for name in a}
    backbone = max(value for name, value in apart.items() if name.startswith("backbone."))
    losses = max(abs(x - y) for x, y in zip(curve, other, strict=True))
    return [losses, backbone, apart["head.weight"]]


def job(folder: Path) -> None:
    """All combinations on the ranks of this launch; rank 0 writes what came out."""
    torch.set_num_threads(1)
    comm = connect(600.0)
    try:
        for number, combination in enumerate(combinations()):
            at = folder / str(number)
            overrides = settings(*combination)
            train(at / "ddp", overrides, comm, nudged=False)
            for name, engine in ENGINES.items():
                with_engine = (*overrides, f"train.engine={engine}")
                train(at / name, with_engine, comm, nudged=name == "rounding")
                found = distance(at / "ddp", at / name)
                if comm.rank == 0:
                    line = json.dumps([comm.world, *combination, name, *found])
                    with (folder / "found.jsonl").open("a") as file:
                        file.write(line + "\n")
    finally:
        disconnect()


def cell(numbers: list[float] | None) -> str:
    """Three differences, short; a run that has not ended has none."""
    if not numbers:
        return "not run"
    if not any(numbers):
        return "0"
    return " / ".join("0" if number == 0 else f"{number:.0e}" for number in numbers)


def table(found: list[list]) -> str:
    """The measured differences in Markdown."""
    head = ["ranks", "precision", "micro-batches", "clipped", "head", *ENGINES]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    by_case: dict[tuple, dict[str, list[float]]] = {}
    for world, precision, parts, clip, kind, engine, *numbers in found:
        by_case.setdefault((world, precision, parts, clip, kind), {})[engine] = numbers
    for (world, precision, parts, clip, kind), measured in by_case.items():
        case = [str(world), precision, str(parts), "yes" if clip else "no", kind]
        rows.append("| " + " | ".join([*case, *(cell(measured.get(e)) for e in ENGINES)]) + " |")
    return "\n".join(rows)


def measure(world: int) -> list[list]:
    """The lines of one world size."""
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        command = on_this_machine(world, [__file__, "--job", folder])
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read(Path(folder) / "found.jsonl")


def read(path: Path) -> list[list]:
    """Lines that a job has written."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Measure, print, and write into the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--world", type=int, nargs="+", default=list(WORLDS), help="numbers of ranks"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the table of this page")
    parser.add_argument(
        "--found",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="tables of these lines instead of runs",
    )
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        job(options.job)
        return
    if options.found:
        found = [read(path) for path in options.found]
    else:
        found = [measure(world) for world in options.world]
    text = table(list(itertools.chain.from_iterable(found)))
    print(text)
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        after = rest.partition(END)[2]
        options.write.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
