"""Steps whose loss or gradient is not finite: skipped on all ranks, without a trace, counted, named."""

import json
import re
from itertools import pairwise

import pytest
import torch
from small_runs import assert_equal_states, lines, losses, settings, train
from torch import nn

from mpsoftmax.comm import Comm, local_rows
from mpsoftmax.config import load
from mpsoftmax.train.culprits import bisect, overflowing
from mpsoftmax.train.loop import Trainer
from mpsoftmax.train.precision import LossScale, autocast_dtype, resolve_precision
from mpsoftmax.train.state import run_state

FP16 = ("train.precision=fp16", "train.loss_scale.growth_every=3", "train.max_skipped=30")


def everything(trainer) -> dict[str, torch.Tensor]:
    """All that a step moves, as a checkpoint would hold it, and this rank's own buffers; collective."""
    tensors = run_state(trainer.engine, trainer.head, trainer.comm)
    tensors |= {f"buffer.{name}": value for name, value in trainer.net.named_buffers()}
    return {n: local_rows(v).clone() for n, v in tensors.items() if not n.startswith("rng.")}


class _Poisoned(torch.autograd.Function):
    """Identity; one row of its gradient is infinite."""

    @staticmethod
    def forward(ctx, features, row):
        ctx.row = row
        return features.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[ctx.row] = float("inf")
        return gradient, None


def poisoned_run(folder, overrides, where, at=(4,)):
    """A run in which a feature (or the gradient by it) of rank 1's third sample breaks in some steps."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    forward, step, found = trainer.engine.forward, trainer._step, []

    def broken(images):
        features = forward(images)
        if trainer.step + 1 in at and trainer.comm.rank == 1:
            if where == "features":
                features = features * torch.ones_like(features).index_fill_(
                    0, torch.tensor([2]), float("nan")
                )
            elif where == "backward pass":
                return _Poisoned.apply(features, 2)
        return features

    def checked(batches):
        before = everything(trainer)
        line = step(batches)
        if trainer.step in at:
            after = everything(trainer)
            found.append([n for n in before if not torch.equal(before[n], after[n])])
        return line

    trainer.engine.forward, trainer._step = broken, checked
    trainer.run()
    return found


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_sample_that_breaks_is_named_and_leaves_no_trace(ranks, tmp_path, accumulation):
    overrides = (
        "backbone.options.norm=batch",
        "head.objective={kind: adaface, scale: 16}",
        f"train.accumulation={accumulation}",
        "train.log_every=5",
        "train.batch_size=24",
    )
    for moved in ranks.run(poisoned_run, 3, folder=tmp_path, overrides=overrides, where="features"):
        assert moved == [[]]
    found = [line for line in lines(tmp_path) if line["kind"] == "skip"]
    assert len(found) == 1
    assert found[0]["step"] == 4
    assert found[0]["loss"] is None
    # Step 4 takes positions 72 to 95; rank 1 the second third of each micro-batch.
    first = [72 + 8] if accumulation == 1 else [72 + 4, 72 + 12 + 4]
    where = [(one["rank"], one["position"]) for one in found[0]["samples"]]
    assert where == [(1, low + 2) for low in first]
    assert all(0 <= one["label"] < 23 for one in found[0]["samples"])
    totals = [line["skipped_steps"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert totals == [1, 1]  # steps 5 and 10


@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        "fsdp2",
        "{kind: deepspeed, stage: 2}",
        pytest.param("{kind: deepspeed, stage: 3}", marks=pytest.mark.slow),
        pytest.param("{kind: deepspeed, stage: 0}", marks=pytest.mark.slow),
        pytest.param("{kind: deepspeed, stage: 1}", marks=pytest.mark.slow),
    ],
)
def test_a_gradient_that_breaks_skips_the_step_on_all_ranks(ranks, tmp_path, engine):
    """Whatever runs the backbone; and the run goes on as if the step had not been."""
    moved = ranks.run(
        poisoned_run, 2, folder=tmp_path, overrides=(f"train.engine={engine}",),
        where="backward pass", at=(3, 5),
    )  # fmt: skip
    assert moved == [[[], []]] * 2
    found = [line for line in lines(tmp_path) if line["kind"] == "skip"]
    assert [line["step"] for line in found] == [3, 5]
    assert all(line["loss"] > 0 and line["gradient_norm"] is None for line in found)


def test_too_many_in_a_row_stop_the_run(ranks, tmp_path):
    overrides = ("train.max_skipped=2",)
    with pytest.raises(AssertionError) as caught:
        ranks.run(
            poisoned_run, 2, folder=tmp_path, overrides=overrides, where="features", at=(4, 6, 7)
        )
    message = (
        r"train\.max_skipped: 2 steps in a row were skipped, the last one step 7: loss nan, gradient norm "
        r"nan; not finite: features of rank 1: sample 80 \(class \d+\); stopped, no weight has moved in them"
    )
    assert len(re.findall(message, str(caught.value))) >= 2  # on all ranks


def test_float16_learns_with_one_scale_on_all_ranks(ranks, tmp_path):
    """Started far too high, the scale comes down by skipped steps; resuming goes on with it, bit by bit."""
    overrides = (*FP16, "train.loss_scale.initial=1e9", "train.steps=40", "train.clip_norm=5.0")
    every = (*overrides, "train.checkpoint_every=15", "train.optimizer.lr=0.05")
    ranks.run(train, 2, folder=tmp_path / "a", overrides=every)
    ranks.run(train, 2, folder=tmp_path / "b", overrides=every, stop_after=20)
    ranks.run(train, 2, folder=tmp_path / "b", overrides=every)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")
    found = [line for line in lines(tmp_path / "a") if line["kind"] == "train"]
    assert 5 <= found[-1]["skipped_steps"] <= 25
    scales = [line["loss_scale"] for line in found]
    assert any(after > before for before, after in pairwise(scales))
    curve = losses(tmp_path / "a")
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
    state = json.loads((tmp_path / "a" / "checkpoints" / "latest" / "state.json").read_text())
    assert state["loss_scale"]["value"] == scales[-1]
    assert state["skipped"]["total"] == found[-1]["skipped_steps"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_float16_skips_the_same_steps_under_every_engine(ranks, tmp_path):
    """Overflows, accumulation and clipping together: the scale takes the same way."""
    overrides = (
        *FP16,
        "train.loss_scale.initial=1e7",
        "train.accumulation=2",
        "train.clip_norm=0.5",
    )
    engines = ["ddp", "fsdp2", *(f"{{kind: deepspeed, stage: {stage}}}" for stage in range(4))]
    runs = []
    for number, engine in enumerate(engines):
        folder = tmp_path / str(number)
        ranks.run(train, 2, folder=folder, overrides=(*overrides, f"train.engine={engine}"))
        runs.append([line for line in lines(folder) if line["kind"] == "train"])
    assert runs[0][-1]["skipped_steps"] >= 4
    for run in runs[1:]:
        for key in ("loss_scale", "skipped_steps"):
            assert [line[key] for line in run] == [line[key] for line in runs[0]]
        found, wanted = ([line["loss"] for line in one] for one in (run, runs[0]))
        assert found == pytest.approx(wanted, rel=1e-2)


def test_float16_without_overflow_is_float32_to_its_rounding(ranks, tmp_path):
    """The scale itself changes nothing: backbone, head and clipping get their gradients unscaled."""
    ranks.run(train, 2, folder=tmp_path / "whole", overrides=("train.clip_norm=0.5",))
    half = ("train.precision=fp16", "train.loss_scale.initial=256", "train.clip_norm=0.5")
    ranks.run(train, 2, folder=tmp_path / "half", overrides=half)
    half = [line for line in lines(tmp_path / "half") if line["kind"] == "train"]
    whole = [line for line in lines(tmp_path / "whole") if line["kind"] == "train"]
    assert half[-1]["skipped_steps"] == 0
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole"), rel=1e-2)
    norms = [[line["gradient_norm"] for line in run] for run in (half, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_the_scale_moves_by_its_rule():
    config = load(None, ["train.steps=1", "train.loss_scale={initial: 8, growth_every: 2}"])
    scale = LossScale(config.train.loss_scale)
    seen = []
    for overflowed in (True, False, True, False, False, False, True, True, True, True, True):
        scale.update(overflowed=overflowed)
        seen.append(scale.value)
    assert seen == [4, 4, 2, 2, 4, 4, 2, 1, 1, 1, 1]
    again = LossScale(config.train.loss_scale)
    again.load_state(scale.state())
    assert again.state() == scale.state()
    assert LossScale(None).state() is None


def test_auto_is_resolved_and_said():
    config, line = resolve_precision(load(None, ["train.steps=1"]), torch.device("cpu"))
    assert config.train.precision == "fp32"
    assert line == "train.precision: auto is fp32 on cpu"
    assert autocast_dtype(config) is None
    chosen, line = resolve_precision(
        load(None, ["train.steps=1", "train.precision=bf16"]), torch.device("cpu")
    )
    assert autocast_dtype(chosen) is torch.bfloat16
    assert line is None


def test_a_backward_pass_that_overflows_is_traced_to_its_samples():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    images = torch.randn(7, 4)
    gradient = torch.randn(7, 3)
    assert overflowing(net, images, gradient, None).tolist() == []
    gradient[2], gradient[5] = 3e38, -3e38
    before = [value.clone() for value in net.state_dict().values()], torch.get_rng_state()
    assert overflowing(net, images * 1e3, gradient, None).tolist() == [2, 5]
    for kept, now in zip(before[0], net.state_dict().values(), strict=True):
        assert torch.equal(kept, now)
    assert torch.equal(before[1], torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


def test_bisecting():
    assert bisect(lambda low, high: low <= 3 < high, 0, 8) == [3]
    assert bisect(lambda low, high: high - low > 2, 0, 4) == [0, 1, 2, 3]  # only together
    assert bisect(lambda low, high: True, 0, 0) == []
