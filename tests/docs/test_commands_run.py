"""The commands of README and docs, run as they stand, a page's in their order, beside what a reader has.

Trainings are resolved and not run (`--print`): the tutorials run some in full. What needs other machines,
accounts or hours (`torchrun` with eight ranks, Slurm, W&B, benchmarks) is checked by test_commands.py alone;
migration.md has a test of its own.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, commands_of
from reader_folder import write_reader_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PAGES = [
    "README.md",
    "docs/commands.md",
    "docs/cleaning.md",
    "docs/doctor.md",
    "docs/evaluation.md",
    "docs/planning.md",
    "docs/report.md",
    "docs/shipping.md",
    "docs/how_to/million_classes.md",
    "docs/how_to/other_hardware.md",
    "docs/how_to/own_dataset.md",
    "docs/how_to/several_datasets.md",
]
NEEDS_A_LOOK = 1
"""Doctor's status where a line of it needs a look, as on a machine with few cores."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    write_reader_folder(folder)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(place, tmp_path, page):
    here = tmp_path / "here"
    shutil.copytree(place, here, symlinks=True)
    for path in (ROOT / "configs").iterdir():
        (here / "configs" / path.name).symlink_to(path)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "shared" / "data" / "lfw_train.tar").symlink_to(here / "faces.tar")
    ran = 0
    for command in commands_of(ROOT / page):
        words = shlex.split(command.text)
        if words[0] == "mpsoftmax" and words[1] != "bench" and "CONFIG" not in command.text:
            run(here, words[1:], str(command))
            ran += 1
    assert ran > 0


def run(here: Path, words: list[str], where: str) -> None:
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "train" and "--dry-run" not in words:
        words = [*words, "--print"]
    if words[0] in ("train", "plan") and words[1].startswith("data.train="):
        words = [*words, "run.dir=runs/new"]  # runs/faces is that of another line
    for target in written(words):  # perhaps by an earlier line of the page
        for path in here.glob(f"{target.rstrip('/')}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "mpsoftmax", *words],
        cwd=here, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    allowed = {0, NEEDS_A_LOOK} if words[0] == "doctor" else {0}
    said = f"{done.stdout[-1500:]}{done.stderr[-1500:]}"
    assert done.returncode in allowed, f"{where}: {words}\n{said}"


def written(words: list[str]) -> list[str]:
    """What a command writes and insists on being new."""
    plain = [word for word in words[1:] if not word.startswith("--")]
    if words[0] in ("clean", "embed"):
        return [plain[2]]
    return [plain[1]] if words[0] in ("convert", "export") else []
