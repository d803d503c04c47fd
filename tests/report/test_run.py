"""Reading a run folder: what is damaged or missing is said and does not stop the page."""

import json

import pytest
from made_runs import (
    classes,
    eval_line,
    evaluation,
    full_run,
    sessions,
    train_lines,
    write_run,
)

from mpsoftmax.report import history, render
from mpsoftmax.report.catalogue import points_of
from mpsoftmax.report.run import read_run, told_apart


def test_a_whole_run(tmp_path):
    run = read_run(full_run(tmp_path / "faces"))
    assert run.notes == []
    assert run.name == "faces"
    assert run.setting("train.batch_size") == 32
    assert run.setting("train.optimizer.lr") is None
    assert [line["step"] for line in run.of_kind("train")] == list(range(5, 101, 5))
    assert history.outcome(run) == "finished"
    assert (history.last_step(run), history.num_steps(run)) == (100, 100)
    assert history.wall_seconds(run) == (600.0, False)
    assert history.step_seconds(run) == pytest.approx(10.0)
    assert history.throughput(run) == pytest.approx(320.0)
    best = history.best_figures(run)["pairs", "accuracy"]
    assert (best.best, best.best_step, best.last) == (0.9, 100, 0.9)
    assert history.best_figures(run)["pairs", "eer"].best == pytest.approx(0.1)  # less is better
    assert history.interval_of(run, "pairs", "accuracy") == pytest.approx((0.85, 0.95))
    assert history.interval_of(run, "pairs", "tar_at_far_0.1") == (0.7, 0.9)
    assert history.interval_of(run, "pairs", "auc") is None


def test_restarts_cut_steps_that_were_taken_again(tmp_path):
    """A killed process left lines up to 60; its successor went on from 40."""
    before = [line for line in train_lines(12) if line["step"] <= 60]
    again = [{**line, "loss": 1.0} for line in train_lines(20) if line["step"] > 40]
    lines = [*before, eval_line(60, 0.5), *again, eval_line(60, 0.6), eval_line(100, 0.55)]
    parts = sessions((0, None, ""), (40, 70, "stopped"), (70, 100, "finished"))
    run = read_run(write_run(tmp_path / "r", lines, parts=parts))
    found = dict(points_of(run)["loss"])
    assert len(found) == 20
    assert found[40] == 10 / 40
    assert found[45] == 1.0
    assert history.restarts(run) == [40, 70]
    assert [one.outcome for one in history.processes(run)] == [
        "no end recorded",
        "stopped",
        "finished",
    ]
    assert history.wall_seconds(run) == (1200.0, True)  # of the killed one it is not known
    best = history.best_figures(run)["pairs", "accuracy"]
    assert (best.best, best.best_step, best.last) == (0.6, 60, 0.55)


def test_what_is_not_finite_becomes_a_gap(tmp_path):
    folder = write_run(tmp_path / "r", train_lines(4))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 25, "loss": NaN, "target_cosine": Infinity}\n')
        file.write('{"kind": "train", "step": 30, "loss": null}\n')
    found = points_of(read_run(folder))
    assert found["loss"][-2:] == [(25, None), (30, None)]
    assert found["target_cosine"][-1] == (25, None)


def test_damaged_files_are_noted_and_left_out(tmp_path):
    folder = full_run(tmp_path / "r")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st')  # cut short by a kill
        file.write(b"\n[1, 2]\n\xff\xfe\n" + b'{"step": 7}\n')
    (folder / "config.yaml").write_text("run: [")
    (folder / "report" / "classes.json").write_text('{"classes": {"id": [1]}}')
    broken = evaluation("others")
    broken["curves"]["tar"] = []
    (folder / "report" / "evaluation-9.json").write_text(json.dumps(broken))
    (folder / "report" / "evaluation-8.json").write_text("[" * 100_000)
    for name in ("links.jsonl", "report/sessions.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"kind": "start", "step": "seven"}\n{"kind": ["end"], "step": 1}\n')
    run = read_run(folder)
    assert len(run.of_kind("train")) == 20
    assert (len(run.sessions), run.links) == (2, [])
    assert "damaged and left out" in render([run])
    assert (run.config, run.classes, list(run.evaluations)) == ({}, None, ["pairs"])
    text = "\n".join(run.notes)
    assert "metrics.jsonl: 3 damaged lines left out" in text
    assert "config.yaml" in text
    for name in ("classes.json", "evaluation-9.json", "evaluation-8.json"):
        assert f"{name} is damaged and left out" in text


def test_pictures_that_are_no_pictures_are_refused(tmp_path):
    tree = evaluation()
    tree["hardest"]["genuine"][0]["pictures"][0] = "https://example.org/who-reads-this.png"
    run = read_run(write_run(tmp_path / "r", train_lines(), evaluations=(tree,)))
    assert run.evaluations == {}
    assert "damaged" in run.notes[0]


def test_secrets_do_not_reach_the_page(tmp_path):
    config = "data: {train: 'https://me:hunter2@host/faces.tar'}\ntrack: {api_key: abcdefgh}\n"
    run = read_run(write_run(tmp_path / "r", [], config=config))
    assert run.setting("track.api_key") == "[redacted]"
    assert "hunter2" not in run.setting("data.train")


def test_no_run_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither config\.yaml nor metrics\.jsonl; allowed"):
        read_run(tmp_path)


def test_names_that_runs_share_are_told_apart(tmp_path):
    folders = [full_run(tmp_path / top / "run") for top in ("a", "b")] + [full_run(tmp_path / "c")]
    runs = told_apart([read_run(folder) for folder in [*folders, folders[0]]])
    assert [run.name for run in runs] == ["a/run (1)", "b/run", "c", "a/run (4)"]


def test_classes_of_a_table(tmp_path):
    folder = full_run(tmp_path / "r", of_classes=classes(["<b>", "b,c"]))
    (folder / "duplicates.csv").write_text('dataset_a,class_a\nx,"b,c"\ny,d\n')
    run = read_run(folder)
    assert run.classes["classes"]["name"] == ["<b>", "b,c"]
    assert run.tables["duplicates"].rows == [["x", "b,c"], ["y", "d"]]
