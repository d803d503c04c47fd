"""Damaged checkpoints: noticed on all ranks, named, and passed over for the last good one."""

import json
import os
import shutil

import pytest
from small_runs import assert_equal_states, lines, settings, train

from mpsoftmax.cli import main
from mpsoftmax.comm import Comm
from mpsoftmax.train.checkpoint import check_undamaged
from mpsoftmax.train.loop import Trainer
from mpsoftmax.train.sums import SUMS_FILE, damage

EVERY = ("train.checkpoint_every=3",)


def shortened(path):
    os.truncate(path, path.stat().st_size - 7)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def removed(path):
    path.unlink()


DAMAGE = {
    "truncated": ("__0_0.distcp", shortened, r"__0_0\.distcp has \d+ bytes, written were \d+"),
    "flipped": ("__1_0.distcp", flipped, "__1_0.distcp is not what was written: its SHA-256"),
    "index flipped": (".metadata", flipped, ".metadata is not what was written"),
    "state flipped": ("state.json", flipped, "state.json is not what was written"),
    "lost": ("__1_0.distcp", removed, "__1_0.distcp is missing"),
    "sums lost": (SUMS_FILE, removed, "sums.json is missing"),
    "sums flipped": (SUMS_FILE, flipped, "sums.json|SHA-256"),
}


@pytest.fixture(scope="module")
def stopped(ranks, tmp_path_factory):
    """A run of two ranks, stopped after step 7: checkpoints 3 and 6."""
    folder = tmp_path_factory.mktemp("stopped")
    ranks.run(train, 2, folder=folder / "run", overrides=EVERY, stop_after=7)
    return folder / "run"


def opened(folder):
    """What a run says about the checkpoints it finds, and the step it goes on from."""
    trainer = Trainer(settings(folder, *EVERY), Comm())
    trainer.log.close()
    return trainer.step, trainer.checkpoints.notes


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_goes_on_from_the_last_good_one(ranks, stopped, tmp_path, kind):
    name, harm, said = DAMAGE[kind]
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder, symlinks=True)
    harm(folder / "checkpoints" / "step-6" / name)
    for step, notes in ranks.run(opened, 2, folder=folder):
        assert step == 3
        assert len(notes) == 2
        assert pytest.raises(ValueError, match=said).matches(ValueError(notes[0]))
        assert "step-6 is damaged" in notes[0]
        assert "falling back to" in notes[1]
        assert notes[1].endswith("step-3")
    assert os.readlink(folder / "checkpoints" / "latest") == "step-3"


def test_after_falling_back_the_run_ends_as_if_nothing_had_happened(ranks, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    flipped(tmp_path / "run" / "checkpoints" / "step-6" / "__0_0.distcp")
    ranks.run(train, 2, folder=tmp_path / "run", overrides=EVERY)
    ranks.run(train, 2, folder=tmp_path / "whole", overrides=EVERY)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert_equal_states(tmp_path / "run", tmp_path / "whole")
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        assert damage(path) == []


def test_none_left_is_an_error_that_names_all(ranks, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    shortened(tmp_path / "run" / "checkpoints" / "step-6" / ".metadata")
    flipped(tmp_path / "run" / "checkpoints" / "step-3" / "__1_0.distcp")
    with pytest.raises(AssertionError, match=r"step-6 is damaged.*step-3 is damaged.*none is left"):
        ranks.run(opened, 2, folder=tmp_path / "run")


def test_a_checkpoint_of_the_first_format_has_no_sums_and_is_read(ranks, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    latest = tmp_path / "run" / "checkpoints" / "step-6"
    (latest / SUMS_FILE).unlink()
    state = json.loads((latest / "state.json").read_text())
    (latest / "state.json").write_text(json.dumps({**state, "format": 1}))
    assert ranks.run(opened, 2, folder=tmp_path / "run") == [(6, [])] * 2


def checked(path):
    try:
        check_undamaged(path, Comm())
    except ValueError as error:
        return str(error)
    return None


def test_every_rank_learns_of_what_one_has_read(ranks, stopped, tmp_path):
    """Ranks share the reading; a file that nobody wrote is noticed too."""
    path = tmp_path / "step-6"
    shutil.copytree(stopped / "checkpoints" / "step-6", path)
    assert ranks.run(checked, 3, path=path) == [None] * 3
    (path / "__9_0.distcp").write_bytes(b"x")
    flipped(path / "__0_0.distcp")
    for message in ranks.run(checked, 3, path=path):
        assert "__9_0.distcp is not in sums.json" in message
        assert "__0_0.distcp is not what was written" in message


def test_inspect_says_which_checkpoints_are_whole(stopped, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    assert main(["inspect", str(tmp_path / "run")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "step-3: step 3, 23 classes, saved by 2 rank(s)" in first
    assert second.endswith("every sum fits")
    flipped(tmp_path / "run" / "checkpoints" / "step-3" / "__1_0.distcp")
    assert main(["inspect", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("step-3: damaged")
    assert "__1_0.distcp is not what was written: its SHA-256 differs" in said[1]
    assert main(["inspect", str(tmp_path / "run" / "checkpoints" / "step-6")]) == 0
