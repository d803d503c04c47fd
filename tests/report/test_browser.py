"""The page in a real browser: no error on its console, every picture there, read-outs and switches work."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_runs import PICTURE, evaluation, full_run

from mpsoftmax.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = """
<script>addEventListener("load", () => {
  const found = { pictures: [...document.images].map(one => one.complete && one.naturalWidth > 0) };
  const svg = document.querySelector("figure.chart svg"), area = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {
    clientX: area.left + 0.96 * area.width, clientY: area.top + 50, bubbles: true }));
  found.readOut = document.querySelector(".read-out")?.textContent ?? "";
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.querySelector('.run-toggle[data-run="1"]').click();
  found.hidden = [...document.querySelectorAll("svg .run-1")].map(one => getComputedStyle(one).display);
  found.shown = [...document.querySelectorAll("svg .run-0")].map(one => getComputedStyle(one).display);
  document.body.dataset.probe = JSON.stringify(found);
});</script>
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH, which is not here"),
]


def opened(page: Path, *options: str) -> tuple[str, str]:
    """The document after its scripts, and what the browser logged."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={page.parent / 'profile'}",
            "--virtual-time-budget=5000",
            "--enable-logging=stderr",
            "--dump-dom",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout, done.stderr


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


def with_probe(page: Path) -> Path:
    """The same page that looks at itself; its policy would not let a foreign script run."""
    text = page.read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    probed = page.with_name("probed.html")
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"))
    return probed


@pytest.mark.timeout(400)
def test_two_runs_in_chromium(tmp_path):
    runs = [full_run(tmp_path / "arcface"), full_run(tmp_path / "cosface", 0.95)]
    page = write_report(runs, tmp_path / "page.html")
    dom, log = opened(page)
    assert console(log) == []
    assert "<h2>Summary</h2>" in dom
    for width in ("1280,900", "500,900"):
        dom, log = opened(with_probe(page), f"--window-size={width}")
        assert console(log) == []
        found = json.loads(re.search(r'data-probe="([^"]*)"', dom).group(1).replace("&quot;", '"'))
        assert found["pictures"] == [True] * 8
        assert found["readOut"] == "step 1000.9 arcface0.95 cosface"
        assert found["wide"] == 0  # nothing makes the page scroll sideways
        assert set(found["hidden"]) == {"none"}
        assert "none" not in found["shown"]


@pytest.mark.timeout(200)
def test_a_foreign_script_does_not_run(tmp_path):
    """Even if one got into the page, as no name can."""
    page = write_report(
        [full_run(tmp_path / "r", evaluations=(evaluation(),))], tmp_path / "p.html"
    )
    text = page.read_text()
    assert PICTURE in text
    page.write_text(text.replace("</body>", "<script>document.title = 'broken'</script></body>"))
    dom, log = opened(page)
    assert "<title>broken" not in dom
    assert any("Content Security Policy" in line for line in console(log))
