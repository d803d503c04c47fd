"""One run, stopped twice and gone on with, as every tracker saw it: two ranks, ten steps."""

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_pairs import write_pairs
from small_runs import settings, summed, train
from wandb_files import segments

from mpsoftmax.comm import Comm
from mpsoftmax.config import to_tree
from mpsoftmax.judge.judge import judge
from mpsoftmax.track.protocol import SavedCheckpoint, numbers_of
from mpsoftmax.track.wandb_artifacts import checkpoint_artifact
from mpsoftmax.track.wandb_run import staged_in
from mpsoftmax.train.state import read_backbone

SECRET = "hf_moreThanEightCharacters"
STOPS = (4, 7, None)
pytestmark = pytest.mark.timeout(300)  # the first test waits for three runs


def overrides(pairs):
    return (
        f"data.eval=[{pairs}]",
        "train.eval_every=4",
        "train.checkpoint_every=2",
        "train.keep_checkpoints=9",
        "train.profile=[2,3]",
        "track.wandb=offline",
        f"track.tags=[{SECRET}, faces]",
        "track.artifacts=reference",
        "track.tensorboard=true",
        "track.callbacks=[recording_tracker:Recorder, recording_tracker:FailsAtLine]",
    )


def train_in_secret(folder, pairs, stop_after):
    """A rank's run, beside a secret in its environment."""
    os.environ["HF_TOKEN"] = SECRET
    try:
        return train(folder, overrides(pairs), stop_after)
    finally:
        del os.environ["HF_TOKEN"]


@pytest.fixture(scope="module")
def tracked(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    pairs = write_pairs(folder / "pairs.bin")
    for stop in STOPS:
        ranks.run(train_in_secret, 2, folder=folder / "run", pairs=pairs, stop_after=stop)
    return folder / "run"


def written(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_wandb_run_after_two_restarts(tracked):
    parts = segments(tracked)
    assert len(parts) == 3
    assert {part.run.run_id for part in parts} == {(tracked / "wandb" / "run_id").read_text()}
    assert all(part.run.resume for part in parts)  # how `wandb sync` knows that they are one run
    assert [part.exit_code for part in parts] == [1, 1, 0]
    assert {part.run.display_name for part in parts} == {"run"}


def test_every_metric_is_in_wandb(tracked):
    """Also of steps that were taken again: W&B holds their last values at the same step."""
    seen = {}
    for part in segments(tracked):
        for row in part.history:
            seen.setdefault(row["step"], {}).update(row)
            assert row["_step"] == row["step"]
    lines = written(tracked)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 11))
    assert sum(line["kind"] == "eval" for line in lines) == 3
    for line in lines:
        for name, value in numbers_of(line).items():
            assert seen[line["step"]][name] == pytest.approx(value, rel=1e-12), name
        assert len(numbers_of(line)) > 3
    assert set(seen) == set(range(1, 11))


def test_the_configuration_is_in_wandb_without_the_secret(tracked):
    expected = to_tree(settings(tracked, *overrides(tracked.parent / "pairs.bin")))
    expected["track"]["tags"] = ["[redacted]", "faces"]
    expected["train"]["precision"] = "fp32"  # what auto became
    for part in segments(tracked):
        config = {key: value for key, value in part.config.items() if key != "_wandb"}
        assert config == expected
        assert list(part.run.tags) == ["[redacted]", "faces"]


def test_no_secret_is_written(tracked):
    paths = [path for name in ("wandb", "tensorboard") for path in (tracked / name).rglob("*")]
    files = [path for path in paths if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert "environment" not in set.union(*(part.kinds for part in segments(tracked)))


def media(part, row, name):
    return json.loads((part.folder / "files" / row[f"{name}/path"]).read_text())


def test_tables_and_plots_are_in_wandb(tracked):
    lines = {line["step"]: line for line in written(tracked) if line["kind"] == "eval"}
    evaluated = []
    for part in segments(tracked):
        for row in part.history:
            if "evaluations/path" not in row:
                continue
            table = media(part, row, "evaluations")
            rows = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
            evaluated.append(row["step"])
            assert rows[-1]["set"] == "pairs"
            assert rows[-1]["accuracy"] == row["eval/pairs/accuracy"]
            assert rows[-1]["auc"] == lines[row["step"]]["auc"]
            roc = media(part, row, "eval/pairs/roc_table")["data"]
            assert roc[0][0] == 0  # FAR
            assert roc[-1][-1] == 1  # TAR
            for kind in ("genuine", "impostor"):
                assert sum(row[f"eval/pairs/{kind}/values"]) == 30
    assert evaluated == [4, 8, 10]


def test_checkpoints_are_artifacts(tracked):
    found, best = {}, {}
    for part in segments(tracked):
        for artifact in part.artifacts:
            if artifact.type == "checkpoint":
                step = json.loads(artifact.metadata)["step"]
                found[step] = artifact
                best |= {step: "best" in artifact.aliases}
    assert sorted(found) == [2, 4, 6, 8, 10]
    for step, artifact in found.items():
        path = tracked / "checkpoints" / f"step-{step}"
        assert {"latest", f"step-{step}"} <= set(artifact.aliases)
        named = {entry.path: entry.ref for entry in artifact.manifest.contents}
        assert named == {file.name: file.resolve().as_uri() for file in path.iterdir()}
    accuracies = {line["step"]: line["accuracy"] for line in written(tracked) if "accuracy" in line}
    highest, expected = -1.0, []
    for step, accuracy in accuracies.items():
        if accuracy > highest:
            highest = accuracy
            expected.append(step)
    assert [step for step in sorted(best) if best[step]] == expected


def test_alerts_reach_wandb(tracked):
    parts = segments(tracked)
    titles = [[alert.title for alert in part.alerts] for part in parts]
    assert titles == [["training failed"], ["training failed"], []]
    assert parts[0].alerts[0].text.startswith("step 4 of 10: Interrupted")


def test_files_wait_for_wandb_in_the_run_folder(tracked):
    staged = [
        entry.local_path
        for part in segments(tracked)
        for artifact in part.artifacts
        for entry in artifact.manifest.contents
        if entry.local_path
    ]
    assert staged
    assert all(path.startswith(str(tracked.resolve())) for path in staged)


def events(folder):
    """Every event of all files, oldest file first."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            yield Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length


def test_tensorboard_has_the_same_numbers(tracked):
    scalars, others, purged = {}, set(), []
    for event in events(tracked):
        if event.WhichOneof("what") == "session_log":
            purged.append(event.step)
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                scalars[event.step, value.tag] = value.simple_value
            else:
                others.add(value.tag.removesuffix("/text_summary"))
    for line in written(tracked):
        for name, value in numbers_of(line).items():
            assert scalars[line["step"], name] == pytest.approx(value, rel=1e-6)
    kinds = {f"eval/pairs/{kind}" for kind in ("roc", "genuine", "impostor")}
    assert others == {"config", "alerts", *kinds}
    assert {5, 7} <= set(purged)  # the steps that were taken again


def test_callbacks_are_told_everything(tracked):
    calls = [json.loads(line) for line in (tracked / "recorded.jsonl").read_text().splitlines()]
    assert [c["start"] for c in calls if c["what"] == "start"] == [0, 4, 6]
    assert all(c["world"] == 2 for c in calls if c["what"] == "start")
    ends = [(c["outcome"], c["step"]) for c in calls if c["what"] == "end"]
    assert ends == [("failed", 4), ("failed", 7), ("finished", 10)]
    last = calls[max(i for i, c in enumerate(calls) if c["what"] == "start") :]
    lines = [(c["step"], c["kind"]) for c in last if c["what"] == "line"]
    assert lines == [(line["step"], line["kind"]) for line in written(tracked) if line["step"] > 6]
    assert [c["step"] for c in last if c["what"] == "evaluation"] == [8, 10]
    assert all(c["pairs"] == 60 for c in last if c["what"] == "evaluation")
    num = len(read_backbone(tracked / "checkpoints" / "step-8"))
    assert [c["tensors"] for c in last if c["what"] == "checkpoint"] == [num, num]
    assert num > 10


def test_steps_are_traced_on_every_rank(tracked):
    for rank in (0, 1):
        with gzip.open(tracked / "profile" / f"rank-{rank}.json.gz") as file:
            names = [event.get("name") for event in json.load(file)["traceEvents"]]
        for phase in ("gather", "sweep", "reduce", "update"):
            assert f"mpsoftmax.{phase}" in names
        assert names.count("mpsoftmax.gather") == 2  # a step each
        assert "aten::mm" in (tracked / "profile" / f"rank-{rank}.txt").read_text()


def test_lines_say_what_steps_cost(tracked):
    shares = []  # of a step's time in its phases; in a single step the process may have had to wait
    for line in written(tracked):
        if line["kind"] != "train":
            assert "timing" not in line
            continue
        timing = line["timing"]
        phases = {"data", "backbone", "gather", "sweep", "reduce", "update"}
        assert set(timing["phases_s"]) == phases
        shares.append(sum(timing["phases_s"].values()) / timing["step_s"])
        assert timing["images_per_s"] == pytest.approx(12 / timing["step_s"])
        assert timing["slowest_data_wait_s"] >= timing["data_wait_s"]
        assert timing["resident_bytes"] > 50e6
        assert ("eta_s" in timing) == (line["step"] not in (1, 5, 7))  # the first of each process
    assert np.median(shares) == pytest.approx(1.0, rel=0.05)


def judged_with_a_strange_callback(folder, data):
    """Evaluates a checkpoint whose configuration names code."""
    path = folder / "checkpoints" / "step-10" / "state.json"
    state = json.loads(path.read_text())
    state["config"]["track"]["callbacks"] = ["recording_tracker_that_is_not_there:Bomb"]
    before = path.read_text()
    path.write_text(json.dumps(state))
    summed(path.parent)
    try:
        found = judge(str(folder), data, Comm(), trust_code=False)
        return found.values["step"]
    finally:
        path.write_text(before)
        summed(path.parent)


def test_a_checkpoint_runs_no_callback(ranks, tracked):
    pairs = str(tracked.parent / "pairs.bin")
    assert ranks.run(judged_with_a_strange_callback, 1, folder=tracked, data=pairs) == [10]


def test_a_backbone_as_a_model(ranks, tmp_path):
    """track.artifacts=backbone: a file that torch.load takes, the same tensors as the checkpoint's."""
    every = ("track.wandb=offline", "track.artifacts=backbone", "train.steps=2")
    ranks.run(train, 1, folder=tmp_path, overrides=every)
    (part,) = segments(tmp_path)
    (artifact,) = part.artifacts
    assert (artifact.type, artifact.name) == ("model", f"backbone-{part.run.run_id}")
    (entry,) = artifact.manifest.contents
    loaded = torch.load(entry.local_path, weights_only=True)
    expected = read_backbone(tmp_path / "checkpoints" / "step-2")
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    ranks.run(log_model_here, 1, folder=tmp_path, path=tmp_path / "config.yaml")
    later = segments(tmp_path)[-1]
    assert later.run.run_id == part.run.run_id
    assert set(later.artifacts[0].aliases) == {"latest", "prod"}
    assert later.artifacts[0].manifest.contents[0].path == "config.yaml"


def log_model_here(folder, path):
    from mpsoftmax.track.wandb_artifacts import log_model

    log_model(folder, path, aliases=["prod"])


def test_all_files_of_a_checkpoint(tracked):
    """track.artifacts=files: every file with its size, copied into the run folder."""
    path = tracked / "checkpoints" / "step-10"
    config = settings(tracked, "track.artifacts=files")
    saved = SavedCheckpoint(step=10, path=path, best=False, figures={}, read_backbone=dict)
    with staged_in(tracked):
        artifact = checkpoint_artifact(config, "abcd", saved)
    sizes = {name: entry.size for name, entry in artifact.manifest.entries.items()}
    assert sizes == {file.name: file.stat().st_size for file in path.iterdir()}
    assert checkpoint_artifact(settings(tracked, "track.artifacts=none"), "abcd", saved) is None


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch.distributed as dist
from small_runs import settings
from mpsoftmax.comm import Comm
from mpsoftmax.train.loop import Trainer
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
trainer = Trainer(settings(Path({folder!r}), "track.wandb=offline", "train.checkpoint_every=2"), Comm())
step = trainer._step
def killed(*arguments):
    if trainer.step == {stop}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
trainer._step = killed
trainer.run()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_wandb_run_after_two_kills(tmp_path):
    """A killed process says no goodbye; the next goes on under its id and logs again what died with it."""
    for stop in (5, 8, None):
        code = KILLED.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), stop=stop)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
        assert done.returncode == (0 if stop is None else -signal.SIGKILL), done.stderr
    parts = segments(tmp_path, wait_s=5)
    ids = {part.run.run_id for part in parts if part.run is not None}
    assert ids == {(tmp_path / "wandb" / "run_id").read_text()}
    assert [part.exit_code for part in parts] == [None, None, 0]
    seen = {row["step"]: row for part in parts for row in part.history}
    for line in written(tmp_path):
        assert seen[line["step"]]["train/loss"] == line["loss"]
    assert len(seen) == 10
