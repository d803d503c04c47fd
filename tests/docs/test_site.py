"""The site is built from docs/, every link leads somewhere, and it loads nothing from elsewhere."""

import os
import re
import subprocess
import sys

import pytest
from documents import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=110,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site):
    made = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert re.sub(r"(^|/)README$", r"\1index", name) in made


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert not re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"https?:", text), path
        assert not re.findall(r"<link[^>]*rel=\"stylesheet\"[^>]*href=\"https?:", text), path


def test_docstrings_are_on_the_reference_pages(site):
    text = (site / "reference" / "head.html").read_text()
    for word in ("ModelParallelSoftmax", "candidate_ids", "num_classes", "load_rows", "Raises"):
        assert word in text
