"""Whole runs: resuming, killing, other world sizes, accumulation, and what a run folder holds."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config, load
from mpsoftmax.train.checkpoint import Checkpoints, stored_tensors
from mpsoftmax.train.loop import Trainer

BASE = (
    "data.train=synthetic",
    "data.synthetic={num_classes: 23, images_per_class: 4}",
    "data.image_size=[16, 16]",
    "data.augment=[{kind: flip}, {kind: crop, pad: 2}]",
    "data.workers=0",
    "backbone={name: small, embedding_dim: 16}",
    "backbone.options={widths: [8, 16], depths: [1, 1], strides: [2, 2], norm: group}",
    "head.objective={kind: cosface, scale: 16, margin: 0.1}",
    "train.steps=10",
    "train.batch_size=12",
    "train.log_every=1",
    "train.schedule={kind: cosine, warmup: 2}",
    "track.wandb=disabled",
)


def settings(folder: Path, *overrides: str) -> Config:
    return load(None, [*BASE, f"run.dir={folder}", *overrides])


class Interrupted(Exception):
    """Stands for whatever ends a run between two steps."""


def train(folder: Path, overrides: tuple[str, ...] = (), stop_after: int | None = None):
    """One rank's run; `stop_after` steps it ends without a word."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    if stop_after is not None:
        step = trainer._step

        def interrupted(*arguments):
            if trainer.step == stop_after:
                raise Interrupted
            return step(*arguments)

        trainer._step = interrupted
        try:
            trainer.run()
        except Interrupted:
            return None
    return trainer.run().steps


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without timings."""
    out = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in out:
        line.pop("timing", None)
    return out


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if line["kind"] == "train"]


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint, whole, in this one process."""
    import torch.distributed.checkpoint as dcp

    from mpsoftmax.train.checkpoint import Reader, empty_like_stored

    path = (folder / "checkpoints" / "latest").resolve()
    tensors = {name: empty_like_stored(meta) for name, meta in stored_tensors(path).items()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(tensors, storage_reader=Reader(path))
    return tensors


def assert_equal_states(first: Path, second: Path) -> None:
    a, b = final_tensors(first), final_tensors(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("head.candidates={kind: uniform, rate: 0.5}", "head.untouched=lazy"),
        ("backbone.options.norm=batch", "backbone.options.dropout=0.3", "data.order=classes"),
        ("train.optimizer={kind: adamw, lr: 0.01}", "head.optimizer=adamw", "train.accumulation=2"),
    ],
    ids=["plain", "sampled-lazy", "batchnorm-dropout", "adamw-accumulation"],
)
def test_resuming_is_bit_identical(ranks, tmp_path, overrides):
    """Stopped at a step that is no checkpoint and resumed at the same world size."""
    every = (*overrides, "train.checkpoint_every=3")
    ranks.run(train, 2, folder=tmp_path / "a", overrides=every)
    ranks.run(train, 2, folder=tmp_path / "b", overrides=every, stop_after=5)
    assert len(losses(tmp_path / "b")) == 5
    ranks.run(train, 2, folder=tmp_path / "b", overrides=every)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")
    assert len(losses(tmp_path / "a")) == 10


def test_four_ranks_to_three_to_one(ranks, tmp_path):
    """Without batch statistics and with all classes the curve follows the uninterrupted run."""
    every = ("train.checkpoint_every=2", "train.accumulation=2")
    ranks.run(train, 4, folder=tmp_path / "whole", overrides=every)
    ranks.run(train, 4, folder=tmp_path / "parts", overrides=every, stop_after=5)
    ranks.run(train, 3, folder=tmp_path / "parts", overrides=every, stop_after=8)
    ranks.run(train, 1, folder=tmp_path / "parts", overrides=every)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-5)
    assert losses(tmp_path / "whole")[-1] != losses(tmp_path / "whole")[-2]


SAMPLED = (
    "backbone.options.norm=batch",
    "head.candidates={kind: uniform, rate: 0.5}",
    "head.untouched=lazy",
    "train.checkpoint_every=3",
)


def state_at_loading(folder: Path):
    """Rows, optimiser rows, and the stream of samples that follows, as this world size sees them."""
    trainer = Trainer(settings(folder, *SAMPLED), Comm())
    table = trainer.head._table
    mine = {name: tensor.clone() for name, tensor in table.tensors().items()}
    positions = [low for cut in list(trainer._cuts()) for low in range(*cut)]
    trainer.log.close()
    return trainer.step, mine, positions


def test_rows_momentum_and_order_at_another_world_size(ranks, tmp_path):
    ranks.run(train, 4, folder=tmp_path, overrides=SAMPLED, stop_after=4)
    seen = [ranks.run(state_at_loading, world, folder=tmp_path) for world in (4, 3, 2, 1)]
    whole = seen[-1][0]
    for results in seen:
        assert all(step == 3 for step, _, _ in results)
        for name, expected in whole[1].items():
            assert torch.equal(torch.cat([mine[name] for _, mine, _ in results]), expected), name
        assert sorted(p for _, _, positions in results for p in positions) == whole[2]
    assert whole[1]["momentum"].abs().sum() > 0
    assert whole[2] == list(range(3 * 12, 10 * 12))


def test_accumulation_equals_one_batch(ranks, tmp_path):
    """Without batch statistics, 5 micro-batches of unequal size are the same step as one batch."""
    ranks.run(train, 2, folder=tmp_path / "one")
    ranks.run(train, 2, folder=tmp_path / "five", overrides=("train.accumulation=5",))
    assert losses(tmp_path / "five") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)


def test_options_that_change_memory_but_not_numbers(ranks, tmp_path):
    ranks.run(train, 1, folder=tmp_path / "plain")
    options = ("backbone.channels_last=true", "backbone.activation_checkpointing=true")
    ranks.run(train, 1, folder=tmp_path / "options", overrides=options)
    assert losses(tmp_path / "options") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_bf16_clipping_and_other_objectives_learn(ranks, tmp_path):
    overrides = (
        "train.precision=bf16",
        "train.clip_norm=5.0",
        "train.steps=40",
        "train.optimizer.lr=0.05",
        "head.objective={kind: arcface, scale: 16, margin: 0.2}",
        "head.compute_dtype=bfloat16",
    )
    ranks.run(train, 2, folder=tmp_path, overrides=overrides)
    curve = losses(tmp_path)
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert all(line["gradient_norm"] > 0 for line in lines(tmp_path))


def test_old_checkpoints_are_pruned_and_latest_points_to_the_newest(ranks, tmp_path):
    overrides = ("train.checkpoint_every=2", "train.keep_checkpoints=2")
    ranks.run(train, 2, folder=tmp_path, overrides=overrides)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-10", "step-8"]
    assert os.readlink(folder / "latest") == "step-10"


def test_a_run_folder_is_not_overwritten(ranks, tmp_path):
    ranks.run(train, 1, folder=tmp_path)
    with pytest.raises(AssertionError, match="already holds a run"):
        ranks.run(train, 1, folder=tmp_path, overrides=("run.resume=false",))


def test_a_checkpoint_of_other_classes_is_refused(ranks, tmp_path):
    ranks.run(train, 2, folder=tmp_path)
    other = ("data.synthetic.num_classes=24", "train.steps=12")
    with pytest.raises(AssertionError, match=r"23 classes; data\.train has 24"):
        ranks.run(train, 2, folder=tmp_path, overrides=other)


def test_a_hostile_checkpoint_runs_nothing(ranks, tmp_path):
    """.metadata is a pickle: one that would run code is refused before it does."""
    ranks.run(train, 1, folder=tmp_path)
    latest = (tmp_path / "checkpoints" / "latest").resolve()
    marker = tmp_path / "executed"
    hostile = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    (latest / ".metadata").write_bytes(hostile)
    with pytest.raises(AssertionError, match=r"posix\.system|os\.system"):
        ranks.run(train, 1, folder=tmp_path, overrides=("train.steps=12",))
    assert not marker.exists()


def command(folder: Path, *overrides: str, nproc: int = 2) -> list[str]:
    config = folder.parent / "base.yaml"
    config.write_text("{}\n")
    arguments = [*BASE, f"run.dir={folder}", *overrides, "--nproc", str(nproc)]
    return [sys.executable, "-m", "mpsoftmax", "train", str(config), *arguments]


def test_kill_9_of_all_ranks_at_a_random_step(tmp_path):
    """The command line, two ranks: killed without warning, started again, same weights."""
    every = ("train.steps=60", "train.checkpoint_every=7")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(whole, *every), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    step = random.Random(os.getpid()).randint(8, 50)
    process = subprocess.Popen(
        command(killed, *every), start_new_session=True, stdout=subprocess.DEVNULL
    )
    metrics, deadline = killed / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        assert time.monotonic() < deadline, f"no step {step} within a minute"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    latest = Checkpoints(killed / "checkpoints", Comm()).latest()
    assert latest is not None, f"killed at step {step}"
    done = subprocess.run(command(killed, *every), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert lines(whole) == lines(killed), f"killed at step {step}"
    assert_equal_states(whole, killed)


def test_mistakes_are_one_line_without_a_traceback(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("train: {stpes: 5}\n")
    done = subprocess.run(
        [sys.executable, "-m", "mpsoftmax", "train", str(config)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "train.stpes: unknown key; did you mean 'steps'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_wandb_offline_and_printed_config(ranks, tmp_path):
    overrides = ("track.wandb=offline",)
    ranks.run(train, 1, folder=tmp_path / "run", overrides=overrides)
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 1000
    assert load(tmp_path / "run" / "config.yaml") == settings(tmp_path / "run", *overrides)
