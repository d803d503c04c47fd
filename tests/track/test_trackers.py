"""Trackers one by one: what is best, what is hidden, what fails and what goes on."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from small_runs import lines, settings, train

from mpsoftmax.evaluate.curves import NUM_POINTS, curves
from mpsoftmax.track.best import Best
from mpsoftmax.track.callbacks import load_callbacks
from mpsoftmax.track.display import describe_training, duration
from mpsoftmax.track.log import Log
from mpsoftmax.track.protocol import numbers_of
from mpsoftmax.track.redaction import redacted, redacted_text
from mpsoftmax.track.wandb_run import WeightsAndBiases


def evaluation(step, **figures):
    return {"kind": "eval", "step": step, "set": "lfw", **figures}


def test_the_best_survives_a_restart():
    seen = [evaluation(1, accuracy=0.5), evaluation(2, accuracy=0.8), evaluation(3, accuracy=0.7)]
    best = Best(None, seen[:2])
    assert best.at(2) == (True, {"lfw/accuracy": 0.8})
    best.see(seen[2])
    assert best.at(3) == (False, {"lfw/accuracy": 0.7})
    assert best.at(4) == (False, {})
    best.see({"kind": "train", "step": 4, "accuracy": 0.99})
    assert best.at(4) == (False, {})
    smallest = Best("lfw/eer", [evaluation(1, eer=0.2), evaluation(2, eer=0.1)])
    assert smallest.at(2)[0]


def test_secrets_are_hidden(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "abcdefgh1234")
    tree = {
        "options": {
            "token": "t0k",
            "num_tokens": 4,
            "api_key": {"inner": ["x", 3]},
            "plain": "text",
        },
        "path": "s3://user:pw@bucket/x?X-Amz-Signature=deadbeef&part=1",
        "list": ["abcdefgh1234 and more"],
    }
    assert redacted(tree) == {
        "options": {
            "token": "[redacted]",
            "num_tokens": 4,
            "api_key": {"inner": ["[redacted]", 3]},
            "plain": "text",
        },
        "path": "s3://[redacted]@bucket/x?X-Amz-Signature=[redacted]&part=1",
        "list": ["[redacted] and more"],
    }
    assert redacted_text("a@b and https://host/path") == "a@b and https://host/path"


def test_names_of_numbers():
    line = {
        "kind": "train", "step": 3, "loss": 1.5, "note": "text", "none": None,
        "timing": {"step_s": 2.0, "phases_s": {"data": 0.5}},
    }  # fmt: skip
    expected = {"train/loss": 1.5, "timing/step_s": 2.0, "timing/phases_s/data": 0.5}
    assert numbers_of(line) == expected
    assert numbers_of(evaluation(3, auc=0.9)) == {"eval/lfw/auc": 0.9}


def test_roc_points_lie_on_the_curve_that_scikit_learn_draws():
    rng = np.random.default_rng(3)
    same = rng.random(5000) < 0.3
    similarity = np.round(np.clip(rng.normal(same * 0.4, 0.2), -1, 1), 3)  # with ties
    found = curves(similarity, same)
    assert len(found.far) <= NUM_POINTS
    assert (found.far[0], found.far[-1], found.tar[-1]) == (0.0, 1.0, 1.0)
    assert (np.diff(found.far) > 0).all()
    far, tar, _ = roc_curve(same, similarity, drop_intermediate=False)
    exact = {round(x, 12): y for x, y in zip(far, tar, strict=True)}  # the last of equal FAR
    for x, y in zip(found.far, found.tar, strict=True):
        assert exact[round(x, 12)] == pytest.approx(y)
    area = np.trapezoid(found.tar, found.far)
    assert area == pytest.approx(roc_auc_score(same, similarity), abs=5e-3)
    assert found.genuine.sum() == same.sum()
    assert found.impostor.sum() == (~same).sum()


def test_roc_of_few_and_of_separable_pairs():
    found = curves(np.array([0.9, 0.8, 0.1]), np.array([True, True, False]))
    assert found.far.tolist() == [0.0, 1.0]
    assert found.tar.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "track.callbacks=[nowhere]",
            r"track.callbacks\[0\]: 'nowhere'; allowed: package.module:Class",
        ),
        ("track.best=lfw/accuracy", r"track.best: 'lfw/accuracy'; allowed: SET/FIGURE"),
        ("train.profile=[5,3]", r"train.profile: \[5, 3\]; allowed: first and last step"),
        (
            "track.artifacts=all",
            "track.artifacts: 'all'; allowed: reference, backbone, files, none",
        ),
    ],
)
def test_settings_that_are_refused(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, override)


def test_best_names_a_set_and_a_figure(tmp_path):
    assert settings(tmp_path, "data.eval=[a/lfw.bin]", "track.best=lfw/tar_at_far_0.001")
    with pytest.raises(ValueError, match="allowed figures: accuracy, auc"):
        settings(tmp_path, "data.eval=[a/lfw.bin]", "track.best=lfw/acuracy")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere_at_all:Tracker", "no module named 'nowhere_at_all'"),
        ("recording_tracker:Missing", "has no attribute 'Missing'"),
        ("collections:Counter", "has no on_start; allowed: a subclass of mpsoftmax.track.Callback"),
    ],
)
def test_callbacks_that_cannot_be_loaded(tmp_path, path, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_callbacks(settings(tmp_path, f"track.callbacks=['{path}']"))
    assert str(raised.value).startswith("track.callbacks[0]: ")


def test_a_tracker_that_cannot_start_stops_all_ranks(ranks, tmp_path):
    wanted = ("track.callbacks=[recording_tracker:FailsAtStart]",)
    with pytest.raises(
        AssertionError, match="rank 0: track: recording_tracker:FailsAtStart"
    ) as raised:
        ranks.run(train, 2, folder=tmp_path, overrides=wanted)
    assert str(raised.value).count("no licence") == 2  # once a rank


def test_a_tracker_that_fails_does_not_stop_training(tmp_path, capsys):
    log = open_log(
        tmp_path, "track.callbacks=[recording_tracker:FailsAtLine, recording_tracker:Recorder]"
    )
    for step in (1, 2):
        log.write({"kind": "train", "step": step, "loss": 1.0})
    log.close(2)
    out = capsys.readouterr().out
    assert out.count("tracking: FailsAtLine.on_line: RuntimeError: no room for step 1") == 1
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert json.loads((tmp_path / "recorded.jsonl").read_text().splitlines()[-1])["step"] == 2


def open_log(folder, *overrides, num_steps=10):
    config = settings(folder, *overrides)
    return Log(config, folder, num_steps, 0, 0, world=1, read_backbone=lambda path: {})


def test_alerts(tmp_path):
    """A loss that is not finite, and a run that ends before its last step without an error."""
    log = open_log(tmp_path, "track.callbacks=[recording_tracker:Recorder]")
    log.write({"kind": "train", "step": 3, "loss": None})
    log.write({"kind": "skip", "step": 4, "loss": None})
    log.close(4)
    calls = [json.loads(line) for line in (tmp_path / "recorded.jsonl").read_text().splitlines()]
    alerts = [(call["title"], call["text"]) for call in calls if call["what"] == "alert"]
    assert alerts == [
        ("loss not finite", "step 3 of 10"),
        ("loss not finite", "step 4 of 10"),
        ("training stopped", "step 4 of 10"),
    ]
    assert calls[-1] == {"what": "end", "outcome": "stopped", "step": 4, "error": ""}


@pytest.mark.parametrize("first", ["checkpoint", "evaluation"])
def test_a_checkpoint_is_told_with_the_evaluation_of_its_step(tmp_path, first):
    """Saving may come before the evaluation of its step, or end after it."""
    log = open_log(tmp_path, "track.callbacks=[recording_tracker:Recorder]")
    line = {"set": "lfw", "accuracy": 0.5}
    shape = curves(np.array([0.9, 0.1]), np.array([True, False]))
    path = tmp_path / "step"
    path.mkdir()

    def save(step):
        log.checkpoint(step, path)

    def evaluate(step):
        log.evaluated(step, [line], {"lfw": shape})

    for act in (save, evaluate) if first == "checkpoint" else (evaluate, save):
        act(2)
    save(4)  # no evaluation: told with the next line
    log.write({"kind": "train", "step": 4, "loss": 1.0})
    log.write({"kind": "train", "step": 5, "loss": 1.0})
    save(3)  # written beside the training, and late
    save(6)
    log.close(6, KeyboardInterrupt())
    calls = [json.loads(text) for text in (tmp_path / "recorded.jsonl").read_text().splitlines()]
    told = [(c["step"], c["best"]) for c in calls if c["what"] == "checkpoint"]
    assert told == [(2, True), (4, False), (3, False), (6, False)]
    order = [c["what"] for c in calls]
    assert order.index("checkpoint") > order.index("evaluation")
    assert (calls[-1]["what"], calls[-1]["outcome"]) == ("end", "stopped")


def test_a_checkpoint_that_is_gone_is_not_told(tmp_path, capsys):
    log = open_log(tmp_path, "track.callbacks=[recording_tracker:Recorder]")
    log.checkpoint(1, tmp_path / "step-1")
    log.close(10)
    assert "was removed before trackers could be told of it" in capsys.readouterr().out
    assert '"checkpoint"' not in (tmp_path / "recorded.jsonl").read_text()


def test_ranks_but_the_first_are_silent(tmp_path):
    config = settings(tmp_path, "track.callbacks=[nowhere_at_all:Tracker]")
    log = Log(config, tmp_path, 10, 0, 1, world=2, read_backbone=lambda path: {})
    log.write({"kind": "train", "step": 1, "loss": None})
    log.checkpoint(1, tmp_path)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_without_its_package(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"track.tensorboard: true, but the package tensorboardX"):
        open_log(tmp_path, "track.tensorboard=true")


def test_a_run_that_cannot_be_tracked_leaves_no_run(tmp_path):
    wanted = "track.callbacks=[recording_tracker:Recorder, recording_tracker:FailsAtStart]"
    with pytest.raises(ValueError, match="no licence"):
        open_log(tmp_path, wanted)
    assert not (tmp_path / "metrics.jsonl").exists()
    calls = [json.loads(line) for line in (tmp_path / "recorded.jsonl").read_text().splitlines()]
    assert [call["what"] for call in calls] == ["start", "end"]  # who had started was told


def test_online_without_credentials(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"track.wandb: 'online', but no WANDB_API_KEY"):
        open_log(tmp_path, "track.wandb=online")


class FakeRun:
    """The part of a W&B run that a server has seen: its newest step."""

    def __init__(self, step):
        self.step, self.rows = step, []

    def define_metric(self, *_, **__):
        pass

    def log(self, values, step):
        self.rows.append((step, values["step"]))


def test_going_back_to_an_older_checkpoint_loses_no_line(tmp_path, monkeypatch):
    """W&B takes no line behind its newest: they are appended, with the training's step as their own."""
    from mpsoftmax.track import wandb_run
    from mpsoftmax.track.protocol import RunStart

    online = FakeRun(step=500)
    monkeypatch.setattr(wandb_run, "open_run", lambda config, folder: online)
    tracker = WeightsAndBiases()
    config = settings(tmp_path)
    tracker.on_start(RunStart(config=config, folder=tmp_path, num_steps=900, start=100, world=1))
    for step in (101, 102):
        tracker.on_line({"kind": "train", "step": step, "loss": 1.0})
    assert online.rows == [(501, 101), (502, 102)]


def test_what_people_read():
    timing = {"images_per_s": 123.4, "eta_s": 8000.0}
    line = {"kind": "train", "step": 1, "loss": 2.0, "timing": timing}
    assert describe_training(line) == "loss 2.000  123 images/s  2 h 13 min left"
    assert describe_training({**line, "loss": None}).startswith("loss not finite")
    assert describe_training({**line, "target_cosine": 0.5}).startswith(
        "loss 2.000  target cosine 0.50"
    )
    assert [duration(s) for s in (5, 600, 200_000)] == ["5 s", "10 min", "2 d 7 h"]


def test_lines_wait_for_room_on_a_full_disk(tmp_path, monkeypatch, capsys):
    """Said once; nothing is lost or written twice, and a disk that stays full is an error at the end."""
    import errno

    from mpsoftmax.track.json_lines import JsonLines

    path, full = tmp_path / "metrics.jsonl", [False]
    lines = JsonLines(path, [])
    real = lines._file

    class Disk:
        def write(self, data):
            if full[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real.write(data[:7])  # and never all at once

        def close(self):
            real.close()

    lines._file = Disk()
    lines.write({"step": 1})
    full[0] = True
    for step in (2, 3):
        lines.write({"step": step})
    assert capsys.readouterr().err.count("wait until there is room") == 1
    full[0] = False
    lines.write({"step": 4})
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4))
    full[0] = True
    lines.write({"step": 5})
    with pytest.raises(OSError, match="No space left"):
        lines.close()


def test_lines_of_training_without_a_terminal(tmp_path, capsys, monkeypatch):
    """The first, the last, and between them one every few seconds."""
    from mpsoftmax.track import display
    from mpsoftmax.track.protocol import RunStart

    now = iter([0.0, 0.0, 1.0, 6.0, 6.0, 7.0, 7.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(now))
    shown = display.Display()
    config = settings(tmp_path)
    shown.on_start(RunStart(config=config, folder=tmp_path, num_steps=5, start=0, world=1))
    for step in range(1, 6):
        shown.on_line({"kind": "train", "step": step, "loss": float(step)})
    assert capsys.readouterr().out.splitlines() == [
        "step 1/5  loss 1.000", "step 3/5  loss 3.000", "step 5/5  loss 5.000"
    ]  # fmt: skip


def test_nothing_is_imported_that_is_not_asked_for():
    import subprocess
    import sys

    code = "import sys, mpsoftmax.train.loop; print({'wandb', 'tensorboardX'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "set()", done.stderr
