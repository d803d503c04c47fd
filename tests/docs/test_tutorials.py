"""The tutorials, word for word: every command in its order, in a fresh clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, commands_of

pytestmark = pytest.mark.slow
DATA = ROOT.parent / "shared" / "data"


def run_page(name: str, folder: Path, left_out: str | None = None) -> None:
    lines = [command.text for command in commands_of(ROOT / "docs" / name)]
    assert len(lines) >= 8
    text = "\n".join(line for line in lines if left_out is None or left_out not in line)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxc", text],
        cwd=folder, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture
def clone(tmp_path):
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "clone"], check=True)
    return tmp_path / "clone"


@pytest.mark.timeout(3000)
def test_characters_from_nothing(clone):
    run_page("tutorial_glyphs.md", clone)
    for made in ("runs/first/report.html", "comparison.html", "embeddings.parquet", "model.onnx"):
        assert (clone / made).stat().st_size > 10_000, made


@pytest.mark.timeout(5000)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data, which is not here")
def test_faces(clone):
    """But for the command that wants eight GPUs."""
    (clone / "faces.tar").symlink_to(DATA / "lfw_train.tar")
    (clone / "lfw.bin").symlink_to(DATA / "lfw_test_a.bin")
    run_page("tutorial_faces.md", clone, left_out="torchrun")
    for made in ("verification.json", "cleaned/findings.csv", "faces.safetensors"):
        assert (clone / made).stat().st_size > 100, made
