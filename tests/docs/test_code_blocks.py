"""Every block of Python in README and docs runs, a page's blocks in one folder, in their order."""

import sys

import pytest
from documents import PAGES, ROOT, python_blocks
from PIL import Image
from small_pairs import write_pairs
from small_runs import train

from mpsoftmax.data.synthetic import Synthetic

WITH_CODE = [page for page in PAGES if python_blocks(page)]
BEFORE = {
    "migration.md": "import torch\nnum_classes = 100\nbackbone = torch.nn.Linear(512, 512)\n"
    "local_embeddings, local_labels = backbone(torch.randn(4, 512)), torch.arange(4)\n",
    "CONTRIBUTING.md": "from dataclasses import dataclass\nfrom torch import Tensor\n"
    "from mpsoftmax.head.objectives import Context, ScaledObjective\n"
    "from mpsoftmax.head.objectives.base import EMPTY, angle, cross_entropy\n",
}
"""What a fragment leaves out."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What a reader has: two runs, pairs, some photos."""
    folder = tmp_path_factory.mktemp("reader")
    for name, seed in (("faces", 0), ("older", 1)):
        train(folder / "runs" / name, (f"train.seed={seed}", "track.report=false"))
    write_pairs(folder / "lfw.bin")
    images = Synthetic(num_classes=2, images_per_class=2, size=(16, 16))
    (folder / "photos").mkdir()
    for number, path in enumerate(["a.jpg", "b.jpg", "photos/c.jpg", "photos/d.jpg"]):
        Image.fromarray(images.image(number)).save(folder / path)
    return folder


def test_there_is_code():
    assert {"README.md", "own_loss.md", "own_backbone.md"} <= {page.name for page in WITH_CODE}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(place, tmp_path, monkeypatch, page):
    """As it stands, but for a million classes, of which a hundredth will do."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(BEFORE.get(page.name, ""), names)
    loaded = set(sys.modules)
    for line, code in python_blocks(page):
        first = code.splitlines()[0]
        if first.startswith("# ") and first.endswith(".py"):
            (tmp_path / first[2:]).write_text(code)
        shrunk = code.replace("1_000_000", "10_000")
        exec(compile("\n" * line + shrunk, str(page), "exec"), names)
    for name in set(sys.modules) - loaded:
        if name.startswith("my_"):
            del sys.modules[name]
