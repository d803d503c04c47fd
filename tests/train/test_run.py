"""Whole runs: resuming, killing, other world sizes, accumulation, and what a run folder holds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import (
    BASE,
    Interrupted,
    assert_equal_states,
    final_tensors,
    lines,
    losses,
    settings,
    train,
)
from wandb_files import segments

from mpsoftmax.comm import Comm
from mpsoftmax.config import load
from mpsoftmax.train.checkpoint import Checkpoints
from mpsoftmax.train.loop import Trainer

MAPPED = (
    "head.candidates={kind: uniform, rate: 0.5}",
    "head.untouched=lazy",
    "head.storage=mapped",
)


KINDS = {
    "plain": (),
    "sampled-lazy": ("head.candidates={kind: uniform, rate: 0.5}", "head.untouched=lazy"),
    "batchnorm-dropout": (
        "backbone.options.norm=batch",
        "backbone.options.dropout=0.3",
        "data.order=classes",
    ),
    "adamw-accumulation": (
        "train.optimizer={kind: adamw, lr: 0.01}",
        "head.optimizer=adamw",
        "train.accumulation=2",
    ),
    "mapped-bfloat16": (*MAPPED, "head.row_dtype=bfloat16", "head.compute_dtype=bfloat16"),
}
QUICK = {(1, "plain"), (4, "plain"), (3, "sampled-lazy")}
QUICK |= {(2, kind) for kind in KINDS}
RESUMED = [
    pytest.param(world, kind, marks=() if (world, kind) in QUICK else pytest.mark.slow)
    for world in (1, 2, 3, 4)
    for kind in KINDS
]


@pytest.mark.parametrize(("world", "kind"), RESUMED)
def test_resuming_is_bit_identical(ranks, tmp_path, world, kind):
    """Stopped at a step that is no checkpoint and resumed at the same world size."""
    every = (*KINDS[kind], "train.checkpoint_every=3")
    ranks.run(train, world, folder=tmp_path / "a", overrides=every)
    ranks.run(train, world, folder=tmp_path / "b", overrides=every, stop_after=5)
    assert len(losses(tmp_path / "b")) == 5
    ranks.run(train, world, folder=tmp_path / "b", overrides=every)
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


def rows_at_loading(folder: Path, storage: str):
    """All class rows, as a run of this storage finds them in the checkpoint."""
    overrides = (*SAMPLED, f"head.storage={storage}")
    trainer = Trainer(settings(folder, *overrides), Comm())
    rows = trainer.head.class_rows(torch.arange(trainer.head.num_classes))
    trainer.log.close()
    return rows


@pytest.mark.parametrize("storage", [pytest.param("device", marks=pytest.mark.slow), "mapped"])
def test_another_storage_and_world_size(ranks, tmp_path, storage):
    every = (*SAMPLED, f"head.storage={storage}")
    ranks.run(train, 3, folder=tmp_path, overrides=every, stop_after=4)
    rows = ranks.run(rows_at_loading, 3, folder=tmp_path, storage=storage)[0]
    for world, other in ((2, "device"), (4, "mapped"), (1, "host")):
        for loaded in ranks.run(rows_at_loading, world, folder=tmp_path, storage=other):
            assert torch.equal(loaded, rows), (world, other)
    # Whatever storage a run goes on with, it takes the same steps.
    for other in ("device", "mapped"):
        folder = tmp_path.with_name(tmp_path.name + other)
        shutil.copytree(tmp_path, folder, symlinks=True)
        ranks.run(train, 3, folder=folder, overrides=(*SAMPLED, f"head.storage={other}"))
    assert losses(tmp_path.with_name(tmp_path.name + "device")) == losses(folder)
    assert len(losses(folder)) == 10


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


def command(folder: Path, *overrides: str, nproc: int = 2) -> list[str]:
    config = folder.parent / "base.yaml"
    config.write_text("{}\n")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these tests are about gloo ranks
    arguments = [*BASE, f"run.dir={folder}", *overrides, "--nproc", str(nproc)]
    return [sys.executable, "-m", "mpsoftmax", "train", str(config), *arguments]


@pytest.mark.slow
@pytest.mark.timeout(300)  # twice a launcher and two ranks that import torch
def test_kill_9_of_all_ranks_at_a_random_step(ranks, tmp_path):
    """The command line, two ranks: killed without warning, started again, same weights."""
    every = ("train.steps=60", "train.checkpoint_every=7")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ranks.run(train, 2, folder=whole, overrides=every)
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
    overrides = ("track.wandb=offline", "train.precision=fp32")
    ranks.run(train, 1, folder=tmp_path / "run", overrides=overrides)
    (written,) = segments(tmp_path / "run")
    assert [row["step"] for row in written.history if "train/loss" in row] == list(range(1, 11))
    assert load(tmp_path / "run" / "config.yaml") == settings(tmp_path / "run", *overrides)


def test_latest_is_never_lost(ranks, tmp_path):
    """What a kill leaves between the rename and `latest`, or a copy that drops symbolic links."""
    every = ("train.checkpoint_every=2", "train.keep_checkpoints=1")
    ranks.run(train, 1, folder=tmp_path, overrides=every, stop_after=5)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-4", folder / "step-20")
    (folder / "step-6.partial").mkdir()
    ranks.run(train, 1, folder=tmp_path, overrides=every, stop_after=7)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-6"]
    (folder / "latest").unlink()
    with pytest.raises(AssertionError, match=r"holds step-6, but 'latest' is missing"):
        ranks.run(train, 1, folder=tmp_path, overrides=every)
    (folder / "latest").symlink_to("step-6")
    assert ranks.run(train, 1, folder=tmp_path, overrides=every) == [10]


@pytest.mark.parametrize("phase", ["tensors written", "renamed"])
def test_killed_while_saving(ranks, tmp_path, phase):
    """Ending between any two acts of a save leaves the previous checkpoint in charge."""
    every = ("train.checkpoint_every=3",)
    ranks.run(train, 2, folder=tmp_path / "a", overrides=every)
    ranks.run(train_until_save_breaks, 2, folder=tmp_path / "b", overrides=every, phase=phase)
    assert os.readlink(tmp_path / "b" / "checkpoints" / "latest") == "step-3"
    ranks.run(train, 2, folder=tmp_path / "b", overrides=every)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")


def train_until_save_breaks(folder, overrides, phase):
    """The second checkpoint is broken off on all ranks alike."""
    from mpsoftmax.train import checkpoint

    trainer = Trainer(settings(folder, *overrides, "train.checkpoint_async=false"), Comm())
    original, point, on_rank_0 = (
        checkpoint.write_json, Checkpoints._point_latest, Checkpoints._on_rank_0
    )  # fmt: skip
    turns = []

    def broken(*_):
        raise Interrupted

    def sometimes(self, action):
        turns.append(trainer.step)
        if turns.count(6) < 2:  # the first makes the directory
            return on_rank_0(self, action)
        if phase == "tensors written":
            checkpoint.write_json = broken
        else:
            Checkpoints._point_latest = broken
        if trainer.comm.rank == 0:
            action()
        raise Interrupted

    Checkpoints._on_rank_0 = sometimes
    try:
        trainer.run()
    except Interrupted:
        return
    finally:
        checkpoint.write_json, Checkpoints._point_latest = original, point
        Checkpoints._on_rank_0 = on_rank_0
    raise AssertionError("the save did not break")


def one_rank_fails(folder):
    """Rank 1 alone cannot read its evaluation set."""
    rank = Comm().rank
    evaluation = "missing.bin" if rank == 1 else "glyphs-open"
    try:
        Trainer(
            settings(folder, f"data.eval=[{evaluation}]", "data.glyphs.system_fonts=false"), Comm()
        )
    except ValueError as error:
        return str(error)
    return None


def test_what_one_rank_meets_all_ranks_say(ranks, tmp_path):
    for message in ranks.run(one_rank_fails, 3, folder=tmp_path):
        assert message is not None
        assert message.startswith("rank 1: data.eval: 'missing.bin': no such file")


def folders_differ(folder):
    rank = Comm().rank
    try:
        Trainer(settings(folder, f"data.synthetic.num_classes={23 + rank}"), Comm())
    except ValueError as error:
        return str(error)
    return None


def test_ranks_that_see_other_data_are_told_so(ranks, tmp_path):
    for message in ranks.run(folders_differ, 2, folder=tmp_path):
        assert message is not None
        assert "rank 1 sees" in message


def test_a_diverging_run_stops_before_a_weight_moves(ranks, tmp_path):
    overrides = ("train.optimizer.lr=1e30", "train.checkpoint_every=1", "train.max_skipped=3")
    message = r"train\.max_skipped: 3 steps in a row were skipped, .*stopped, no weight has moved"
    with pytest.raises(AssertionError, match=message):
        ranks.run(train, 2, folder=tmp_path, overrides=overrides)
    assert all(value.isfinite().all() for name, value in final_tensors(tmp_path).items())
    assert sum(line["kind"] == "skip" for line in lines(tmp_path)) == 3


def test_another_optimiser_is_refused_by_name(ranks, tmp_path):
    ranks.run(train, 1, folder=tmp_path, stop_after=None)
    other = ("train.optimizer={kind: adamw, lr: 0.01}", "train.steps=12")
    with pytest.raises(AssertionError, match=r"train\.optimizer\.kind: adamw; .* momentum_buffer"):
        ranks.run(train, 1, folder=tmp_path, overrides=other)
    assert load(tmp_path / "config.yaml").train.optimizer.kind == "sgd"


def corrupted(folder, limit, accumulation=1):
    """A run on a folder of PNGs in which one is broken."""
    trainer = Trainer(
        settings(
            folder / "run", f"data.train={folder / 'images'}", f"data.max_corrupt={limit}",
            f"train.accumulation={accumulation}", "train.log_every=1",
        ),
        Comm(),
    )  # fmt: skip
    return trainer.run().steps


def test_corrupt_images_stop_or_are_left_out(ranks, tmp_path):
    from mpsoftmax.data.convert import convert
    from mpsoftmax.data.synthetic import Synthetic

    images = Synthetic(num_classes=6, images_per_class=3, size=(16, 16))
    convert(images, tmp_path / "images", number_classes=True)
    broken = sorted((tmp_path / "images").rglob("*.png"))[4]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(AssertionError, match=broken.name):
        ranks.run(corrupted, 1, folder=tmp_path, limit=0)
    shutil.rmtree(tmp_path / "run")
    assert ranks.run(corrupted, 1, folder=tmp_path, limit=1) == [10]  # several epochs, one image
    curve = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    ranks.run(corrupted, 1, folder=tmp_path, limit=1, accumulation=3)
    assert losses(tmp_path / "run") == pytest.approx(curve, rel=2e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_backbone_trains_to_the_same_curve(ranks, tmp_path):
    ranks.run(train, 1, folder=tmp_path / "plain")
    ranks.run(train, 1, folder=tmp_path / "compiled", overrides=("backbone.compile=true",))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
