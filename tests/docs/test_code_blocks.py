"""Every block of Python in README and docs runs, a page's blocks in one folder, in their order."""

import sys

import pytest
from documents import PAGES, ROOT, python_blocks

WITH_CODE = [page for page in PAGES if python_blocks(page)]
BEFORE = {
    "CONTRIBUTING.md": "from dataclasses import dataclass\nfrom torch import Tensor\n"
    "from mpsoftmax.head.objectives import Context, ScaledObjective\n"
    "from mpsoftmax.head.objectives.base import EMPTY, angle, cross_entropy\n",
}
"""Imports that a fragment leaves out."""


def test_there_is_code():
    assert {"README.md", "own_loss.md", "own_backbone.md"} <= {page.name for page in WITH_CODE}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(tmp_path, monkeypatch, page):
    """As it stands, but for a million classes, of which a hundredth will do."""
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
