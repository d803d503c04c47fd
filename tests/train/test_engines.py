"""FSDP2 and DeepSpeed against DDP: the same steps, checkpoints that any engine loads, refusals by name.

The table of docs/engines.md is measured by benchmarks/engines.py over many more combinations.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_runs import distances
from small_runs import BASE, assert_equal_states, lines, losses, train
from torch import nn

from mpsoftmax.config import load
from mpsoftmax.train.engines import describe_engine
from mpsoftmax.train.engines.deepspeed import import_deepspeed
from mpsoftmax.train.engines.deepspeed_config import settle
from mpsoftmax.train.engines.fsdp2 import blocks_of

CLIPPED = ("train.accumulation=2", "train.clip_norm=0.5", "backbone.options.norm=batch")
JOINT = ("train.clip_norm=0.5", "train.clip_over=joint")
slow = pytest.mark.slow


def zero(stage: int) -> str:
    return f"train.engine={{kind: deepspeed, stage: {stage}}}"


FSDP2 = "train.engine=fsdp2"
FSDP2_CASE = pytest.param(FSDP2, id="fsdp2")
ENGINES = [
    FSDP2_CASE,
    pytest.param(zero(0), id="zero-0", marks=slow),
    pytest.param(zero(1), id="zero-1", marks=slow),
    pytest.param(zero(2), id="zero-2", marks=slow),
    pytest.param(zero(3), id="zero-3"),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_steps_as_ddp(ranks, tmp_path, engine):
    """Clipped, accumulated, on unequal shares of a batch, with batch statistics."""
    ranks.run(train, 2, folder=tmp_path / "ddp", overrides=CLIPPED)
    ranks.run(train, 2, folder=tmp_path / "other", overrides=(*CLIPPED, engine))
    far = distances(tmp_path / "ddp", tmp_path / "other")
    assert max(far.values()) < 2e-5, far
    assert losses(tmp_path / "ddp")[0] != losses(tmp_path / "ddp")[-1]


@pytest.mark.parametrize(
    "engine",
    [
        FSDP2_CASE,
        *(pytest.param(zero(n), id=f"zero-{n}", marks=slow) for n in range(3)),
        pytest.param(zero(3), id="zero-3"),
    ],
)
def test_resuming_is_bit_identical(ranks, tmp_path, engine):
    """Stopped at a step that is no checkpoint and resumed at the same world size by the same engine."""
    adamw = "train.optimizer={kind: adamw, lr: 0.01}"
    every = (engine, "backbone.options.norm=batch", "train.checkpoint_every=3", adamw)
    ranks.run(train, 2, folder=tmp_path / "a", overrides=every)
    ranks.run(train, 2, folder=tmp_path / "b", overrides=every, stop_after=5)
    ranks.run(train, 2, folder=tmp_path / "b", overrides=every)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "relay",
    [
        ((FSDP2, 3), (zero(2), 2)),
        pytest.param((("train.engine=ddp", 2), (zero(1), 4), (zero(3), 2), (FSDP2, 4)), marks=slow),
    ],
    ids=["short", "long"],
)
def test_a_checkpoint_goes_from_engine_to_engine(ranks, tmp_path, relay):
    """At other world sizes too: weights, momentum and rows are loaded by name."""
    # A small step: at the usual one this run is chaotic, and what world sizes round differently grows.
    every = ("train.checkpoint_every=2", "train.optimizer.lr=0.02")
    ranks.run(train, 2, folder=tmp_path / "whole", overrides=every)
    for number, (engine, world) in enumerate((*relay, ("train.engine=ddp", 1))):
        stop = 2 * number + 2 if number < len(relay) else None
        ranks.run(
            train, world, folder=tmp_path / "parts", overrides=(*every, engine), stop_after=stop
        )
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-5)
    assert max(distances_of_weights(tmp_path)) < 2e-5


def distances_of_weights(folder: Path) -> list[float]:
    """The last run had another world size: generators and losses apart, everything is comparable."""
    from small_runs import final_tensors

    a, b = final_tensors(folder / "whole"), final_tensors(folder / "parts")
    names = [name for name in a if not name.startswith("rng.")]
    assert {name for name in b if not name.startswith("rng.")} == set(names)
    assert any("momentum_buffer" in name for name in names)
    return [float((a[n].double() - b[n].double()).abs().max()) for n in names if a[n].numel()]


def test_blocks_hold_no_other_block():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)]),
    )
    assert {id(block) for block in blocks_of(net)} == {
        id(b) for b in (net[0], net[1][0][0], net[1][1])
    }


def told(config: object = None, stage: int | None = None, *overrides: str):
    given = load(None, ["train.steps=1", "train.batch_size=64", *overrides])
    return settle(config or {}, stage, given)


def test_what_deepspeed_is_told():
    given = {"train_batch_size": 64, "gradient_clipping": "auto", "zero_optimization": {"stage": 2}}
    found = told({**given, "fp16": {"enabled": False}, "steps_per_print": 50})
    assert found["zero_optimization"] == {"stage": 2}
    assert found["steps_per_print"] == 50
    assert found["gradient_clipping"] == 0.0  # the loop's
    assert "fp16" not in found
    assert "train_batch_size" not in found
    assert told()["zero_optimization"] == {"stage": 1}
    assert told({"zero_optimization": {"reduce_bucket_size": 10}}, 3)["zero_optimization"] == {
        "reduce_bucket_size": 10,
        "stage": 3,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"train_batch_size": 32},
            r"config\.train_batch_size: 32 contradicts train\.batch_size=64",
        ),
        ({"gradient_accumulation_steps": 2}, r"contradicts train\.accumulation=1"),
        ({"gradient_clipping": 1.0}, r"gradient_clipping: 1\.0 contradicts train\.clip_norm=0"),
        (
            {"optimizer": {"type": "Adam"}},
            r"config\.optimizer: .*allowed: none: give train\.optimizer",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, r"give train\.schedule"),
        ({"fp16": {"enabled": True}}, r"give train\.precision: fp16"),
        ({"bf16": {"enabled": True}}, r"give train\.precision: bf16"),
        ({"zero_optimization": {"stage": 3}}, r"stage: 3 contradicts train\.engine\.stage=2"),
        ({"zero_optimization": {"offload_param": {}}}, r"offload_param: given; allowed: left out"),
        ({"zero_optimisation": {}}, r"not a key for us; did you mean 'zero_optimization'"),
        ({"zero_optimization": 2}, r"zero_optimization: 2; allowed: a mapping"),
    ],
)
def test_clashes_with_our_keys_are_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        told(config, 2)


def test_the_share_of_a_rank_must_be_ours():
    config = load(None, ["train.steps=1", "train.batch_size=64", "train.accumulation=2"])
    settle({"train_micro_batch_size_per_gpu": 8}, 1, config, world=4)
    with pytest.raises(
        ValueError, match=r"per_gpu: 8 contradicts train\.batch_size=64 over 2 ranks"
    ):
        settle({"train_micro_batch_size_per_gpu": 8}, 1, config, world=2)


def test_stage_must_be_one_of_zero():
    with pytest.raises(ValueError, match=r"train\.engine\.stage: 4; allowed: 0, 1, 2, 3"):
        told({}, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.engine=fsdp"], r"train\.engine: kind 'fsdp'; did you mean 'fsdp2'"),
        (["train.engine={kind: fsdp2, stage: 1}"], r"train\.engine\.stage: unknown key"),
        (["train.engine=fsdp2", "backbone.compile=true"], r"backbone\.compile: true; allowed with"),
        (["train.engine={kind: deepspeed, config: none.json}"], r"none\.json: cannot be read"),
    ],
)
def test_engines_are_checked_before_anything_starts(overrides, message):
    with pytest.raises(ValueError, match=message):
        describe_engine(load(None, ["train.steps=1", *overrides]))


def test_a_file_of_deepspeeds_own_is_read(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, "train_batch_size": "auto"}))
    describe_engine(
        load(None, ["train.steps=1", f"train.engine={{kind: deepspeed, config: {path}}}"])
    )
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"holds list; allowed: a mapping"):
        describe_engine(
            load(None, ["train.steps=1", f"train.engine={{kind: deepspeed, config: {path}}}"])
        )


def test_a_missing_deepspeed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match=r"pip install 'mpsoftmax\[deepspeed\]'"):
        import_deepspeed()


@slow
@pytest.mark.timeout(1500)
def test_three_launchers_start_the_same_run(tmp_path):
    """mpsoftmax train --nproc, torchrun, and deepspeed without ssh."""
    config = tmp_path / "base.yaml"
    config.write_text("{}\n")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["DS_ACCELERATOR"] = "cpu"
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=2\n")
    python, scripts = sys.executable, Path(sys.executable).parent
    launchers = {
        "nproc": [python, "-m", "mpsoftmax"],
        "torchrun": [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                     "-m", "mpsoftmax"],
        "deepspeed": [python, str(scripts / "deepspeed"), "--hostfile", str(hosts), "--no_ssh",
                      "--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", "29741",
                      "--num_gpus", "2", "--module", "mpsoftmax"],
    }  # fmt: skip
    for name, launcher in launchers.items():
        arguments = ["train", str(config), *BASE, zero(1), f"run.dir={tmp_path / name}"]
        if name == "nproc":
            arguments += ["--nproc", "2"]
        done = subprocess.run(
            [*launcher, *arguments], capture_output=True, text=True, timeout=480, env=environment
        )
        assert done.returncode == 0, (name, done.stdout[-1000:], done.stderr[-3000:])
    for name in ("torchrun", "deepspeed"):
        assert lines(tmp_path / name) == lines(tmp_path / "nproc"), name
        assert_equal_states(tmp_path / name, tmp_path / "nproc")


def test_norms_of_unequal_parts_are_whole(ranks, tmp_path):
    """A joint norm is the root of the two squares, the same under parts of parameters as under none."""
    ranks.run(train, 3, folder=tmp_path / "ddp", overrides=JOINT)
    ranks.run(train, 3, folder=tmp_path / "parts", overrides=(*JOINT, FSDP2))
    ranks.run(train, 3, folder=tmp_path / "alone", overrides=("train.clip_norm=1e9",))
    joint, parts, alone = (lines(tmp_path / name)[0] for name in ("ddp", "parts", "alone"))
    assert joint["gradient_norm"] == pytest.approx(parts["gradient_norm"], rel=1e-5)
    whole = (alone["gradient_norm"] ** 2 + joint["class_gradient_norm"] ** 2) ** 0.5
    assert joint["gradient_norm"] == pytest.approx(whole, rel=1e-5)
    assert 0 < joint["class_gradient_norm"] < joint["gradient_norm"]
    assert losses(tmp_path / "ddp") == pytest.approx(losses(tmp_path / "parts"), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.clip_over=joint"], r"train\.clip_over: joint; allowed only with train\.clip_norm"),
        ([*JOINT, "head.weights=class_centres"], r"train\.clip_over: joint with head\.weights"),
        (
            ["train.loss_scale.backoff=1"],
            r"train\.loss_scale\.backoff: 1\.0; allowed: 0 < value < 1",
        ),
        (
            ["train.loss_scale.initial=0.5"],
            r"train\.loss_scale\.initial: 0\.5; allowed: a number, at",
        ),
        (["train.max_skipped=0"], r"train\.max_skipped: 0; allowed: at least 1"),
    ],
)
def test_precision_and_clipping_are_checked(overrides, message):
    from mpsoftmax.train.build import check_parts

    with pytest.raises(ValueError, match=message):
        check_parts(load(None, ["train.steps=1", *overrides]))
