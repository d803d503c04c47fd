"""The page: every section, nothing loaded, nothing a name could break, runs compared."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET

import pytest
from made_runs import (
    Page,
    classes,
    eval_line,
    evaluation,
    full_run,
    sessions,
    train_lines,
    write_run,
)

from mpsoftmax.cli import main
from mpsoftmax.report import render
from mpsoftmax.report.run import read_run

HOSTILE = "<script>alert('x')</script>&\"\x00\udcff"


def page_of(*folders) -> tuple[str, Page]:
    text = render([read_run(folder) for folder in folders])
    return text, Page(text)


def assert_sound(text: str) -> None:
    """Balanced elements, drawings that are XML, nothing that would be loaded."""
    page = Page(text)
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert drawings
    for one in drawings:
        ET.fromstring(one)
    loads = [
        attributes[key]
        for tag, attributes in page.elements
        for key in ("src", "href", "srcset", "poster", "action", "data")
        if attributes.get(key) and not attributes[key].startswith(("#", "data:"))
    ]
    assert loads == []
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style
    handlers = [
        key for _, attributes in page.elements for key in attributes if key.startswith("on")
    ]
    assert handlers == []


def test_a_whole_run_has_every_section(tmp_path):
    text, page = page_of(full_run(tmp_path / "faces"))
    assert_sound(text)
    ids = [attributes.get("id") for tag, attributes in page.elements if tag == "section"]
    assert ids == ["summary", "evaluation", "training", "classes", "time", "setup"]
    said = page.text()
    for words in (
        "0.9000",
        "0.8500 .. 0.9500",
        "1,234 images of 50 classes",
        "40 genuine and 40 impostor pairs",
        "Target cosine",
        "Constant throughout: candidate classes 100, skipped steps 0, throughput 320",
        "memory 3 GiB.",
        "3 classes of 50",
        "60.0 %",  # of a step is the backbone
        "abc+",
        "torch 2.13",
    ):
        assert words in said, words
    assert "missing" not in [attributes.get("class") for _, attributes in page.elements]
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 4
    assert all(one["src"].startswith("data:image/png;base64,") and one["alt"] for one in pictures)


def test_memory_is_in_binary_units_and_speeds_leave_out_the_start(tmp_path):
    lines = train_lines()
    lines[0]["timing"]["images_per_s"] = 1.0  # workers start
    for k, line in enumerate(lines):
        line["timing"]["images_per_s"] += k
        line["timing"]["resident_bytes"] += k * 2**28
    text, _ = page_of(full_run(tmp_path / "r", lines=lines))
    figure = next(f for f in re.findall(r"<figure.*?</figure>", text, re.S) if ">Throughput<" in f)
    assert '"x":[10.0,' in figure
    figure = next(f for f in re.findall(r"<figure.*?</figure>", text, re.S) if ">Memory<" in f)
    assert "GiB" in figure
    assert '"y":[3.0,3.25,3.5,' in figure


def test_names_cannot_break_out(tmp_path):
    tree = evaluation(HOSTILE)
    for pair in tree["hardest"]["genuine"]:
        pair["names"] = [HOSTILE, f"folder/{HOSTILE}"]
    lines = [*train_lines(), {**eval_line(100, 0.9, HOSTILE), HOSTILE: 0.5}]
    lines += [{**eval_line(50, 0.8, HOSTILE), HOSTILE: 0.25}]
    for k, line in enumerate(lines):
        line[HOSTILE + "2"] = float(k)
    parts = sessions((0, 100, "failed"))
    parts[-1]["error"] = HOSTILE
    folder = full_run(
        tmp_path / "<img src=x onerror=alert(1)>",
        lines=lines,
        parts=parts,
        evaluations=(tree,),
        of_classes=classes([HOSTILE, "</title></svg>", "]]>--><!--"]),
        config="data: {train: \"<script>alert('x')</script>\"}\n",
    )
    (folder / "duplicates.csv").write_text("a,b\n<script>alert(3)</script>,</td>\n")
    (folder / "links.jsonl").write_text(
        '{"step": 1, "kind": "<b>", "a": "<i>", "b": "</script>"}\n'
    )
    text, page = page_of(folder)
    assert_sound(text)
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert [one for one in scripts if one.get("type") != "application/json"] == [{}]  # our own
    assert text.count("<img") == 4
    assert "alert('x')" in page.text()
    text.encode()  # no lone surrogates


def test_only_the_pages_own_script_may_run(tmp_path):
    text, page = page_of(full_run(tmp_path / "r"))
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_what_is_missing_is_said_with_the_cure(tmp_path):
    text, page = page_of(write_run(tmp_path / "bare", [], config="train: {steps: 5}\n"))
    Page(text)
    said = page.text()
    for words in (
        "metrics.jsonl is empty.",
        "Nothing was evaluated.",
        "data.eval",
        "No classes of bare.",
        "mpsoftmax report RUN --recompute",
        "No phases.",
        "how it ended was not recorded",
        "track.report: true",
    ):
        assert words in said, words


def test_evaluated_without_pairs(tmp_path):
    lines = [*train_lines(), eval_line(100, 0.9)]
    _, page = page_of(write_run(tmp_path / "old", lines))
    assert "No curves and no pairs." in page.text()
    assert "0.9000" in page.text()


def test_not_finite_and_restarts_are_said(tmp_path):
    lines = train_lines(loss=lambda step: None if step in (50, 55) else 10.0 / step)
    lines.append({"kind": "skip", "step": 50, "loss": None})
    lines[-2]["skipped_steps"] = 2
    parts = sessions((0, None, ""), (40, 100, "stopped"))
    text, page = page_of(full_run(tmp_path / "r", lines=lines, parts=parts))
    said = page.text()
    for words in (
        "2; 2 logged losses not finite",
        "Gaps: 2 logged losses not finite",
        "stopped before its last step",
        "1, from step 40",
        "at least 10 min in all",
    ):
        assert words in said, words
    assert "r: went on from step 40" in text
    assert "r: step 50 skipped" in text


def test_runs_compared(tmp_path):
    first = full_run(
        tmp_path / "arcface", config="train: {steps: 100}\nhead: {objective: arcface}\n"
    )
    second = full_run(
        tmp_path / "cosface", 0.925, config="train: {steps: 100}\nhead: {objective: cosface}\n"
    )
    text, page = page_of(first, second)
    assert_sound(text)
    better = [a for tag, a in page.elements if a.get("class") == "better"]
    assert len(better) == 2  # accuracy rose, EER fell
    assert "+0.0250" in page.text()
    assert "\u22120.0250" in page.text()
    assert "head.objective" in page.text()
    assert "train.steps" not in re.search(r"Settings that differ.*?</table>", text, re.S).group()
    loss = next(f for f in re.findall(r"<figure.*?</figure>", text, re.S) if ">Loss<" in f)
    assert loss.count('class="line"') == 2
    assert 'class="c0 run-0"' in loss
    assert 'class="c1 run-1"' in loss
    toggles = [a for tag, a in page.elements if a.get("class") == "run-toggle"]
    assert [one["data-run"] for one in toggles] == ["0", "1"]


def test_a_run_compared_with_one_that_has_nothing(tmp_path):
    text, page = page_of(write_run(tmp_path / "bare", []), full_run(tmp_path / "full"))
    assert_sound(text)
    assert "No classes of bare." in page.text()


def test_several_datasets(tmp_path):
    lines = train_lines()
    for line in lines:
        line |= {
            "rejected_share": line["step"] / 1e4,
            "rejected_share_0": 0.1,
            "rejected_share_1": 0.2,
        }
    folder = full_run(
        tmp_path / "r", lines=lines, config="data: {train: [a.tar, b.tar]}\ntrain: {steps: 100}\n"
    )
    (folder / "links.jsonl").write_text(
        '{"step": 10, "kind": "link", "a": "a:ann", "b": "b:anne", "cosine": 0.8, "lead": 0.2}\n'
        '{"step": 20, "kind": "split", "a": "a:ann", "b": "b:anne", "cosine": 0.1, "lead": 0.0}\n'
    )
    (folder / "merged.csv").write_text("dataset_a,class_a,dataset_b,class_b\na,x,b,y\n")
    _, page = page_of(folder)
    said = page.text()
    assert "links.jsonl: 1 linked, 1 split again." in said
    assert "Merged classes: 1 (merged.csv)" in said
    assert "No duplicates.csv." in said
    assert "Mined share" in said


def test_the_command(tmp_path, capsys, monkeypatch):
    one, two = full_run(tmp_path / "one"), full_run(tmp_path / "two")
    assert main(["report", str(one)]) == 0
    assert (one / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert str(one / "report.html") in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(one), str(two)]) == 0
    assert (tmp_path / "report.html").exists()
    assert main(["report", str(one), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds neither config.yaml" in capsys.readouterr().err
    left = [path.name for path in tmp_path.rglob("*.new")]
    assert left == []


@pytest.mark.parametrize("num", [1, 2, 3])
def test_few_lines_and_few_values(tmp_path, num):
    """A run of one line is a page too."""
    tree = evaluation()
    tree["curves"] |= {"far": [0.0, 1.0], "tar": [1.0, 1.0]}  # no pair is wrong
    folder = full_run(tmp_path / "r", lines=train_lines(num), evaluations=(tree,))
    assert_sound(page_of(folder)[0])
