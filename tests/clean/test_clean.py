"""`mpsoftmax clean`: planted errors are found; a reviewed table is a view that equals a set written anew."""

import csv
import dataclasses
import html.parser
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from given_images import GivenImages
from PIL import Image

from mpsoftmax.clean.apply import apply_table
from mpsoftmax.clean.centres import fit
from mpsoftmax.clean.find import find, set_names
from mpsoftmax.clean.finding import read_findings, write_findings
from mpsoftmax.clean.identities import likely_pairs
from mpsoftmax.clean.labels import two_parts
from mpsoftmax.clean.near_duplicates import near_pairs
from mpsoftmax.clean.page import write_page
from mpsoftmax.cli import main
from mpsoftmax.comm import Comm
from mpsoftmax.config import from_tree
from mpsoftmax.data.convert import convert
from mpsoftmax.data.open import open_images
from mpsoftmax.models import TrainedModel

CLASSES, EACH, SIZE = 24, 8, (24, 24)


class Pixels(torch.nn.Module):
    """A net without weights: coarse colours of the picture."""

    def forward(self, images):
        return F.adaptive_avg_pool2d(images, 6).flatten(1)


def model():
    config = from_tree({"data": {"image_size": list(SIZE), "workers": 0}, "train": {"steps": 1}})
    return TrainedModel(Pixels(), config, None, 0, torch.device("cpu"))  # type: ignore[arg-type]


def pictures(seed=0, classes=CLASSES):
    """A random coarse picture a class, noise an image: [classes * EACH] arrays and labels."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (classes, 6, 6, 3))
    images = []
    for k in np.repeat(np.arange(classes), EACH):
        large = np.repeat(np.repeat(coarse[k], 4, 0), 4, 1)
        noise = draw.normal(0, 25, (6, 6, 3)).repeat(4, 0).repeat(4, 1) + draw.normal(
            0, 30, large.shape
        )
        images.append((large + noise).clip(0, 255).astype(np.uint8))
    return images, np.repeat(np.arange(classes), EACH)


def noised(image, draw):
    return (image + draw.normal(0, 20, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def planted():
    """Ten labels swapped, one class in two, one near-duplicate within and one across; and the truth."""
    images, labels = pictures()
    swapped = dict(zip(range(0, 160, 16), range(1, 20, 2), strict=True))
    swapped = {image: (labels[image] + 5) % 20 for image in swapped}
    true = labels.copy()
    labels = labels.copy()
    labels[list(swapped)] = list(swapped.values())
    labels[22 * EACH + 1 : 23 * EACH : 2] = CLASSES  # half of class 22
    brighter = (images[170].astype(int) + 9).clip(0, 255).astype(np.uint8)
    images = [*images, brighter]
    labels = np.append(labels, labels[170])
    names = [f"c{k:02d}" for k in range(CLASSES)] + ["c22-again"]
    return GivenImages(images, labels, names), {k: int(true[k]) for k in swapped}


def test_planted_errors_are_found(planted):
    images, swapped = planted
    found = find(model(), images)
    labels = [one for one in found.listed if one.kind == "label"]
    assert {one.image: one.to_class for one in labels if one.action == "relabel"} == swapped
    identities = [one for one in found.listed if one.kind == "identity"]
    assert [(one.class_id, one.to_class) for one in identities if one.action == "merge"] == [
        (22, 24)
    ]
    near = [one for one in found.listed if one.kind == "near_duplicate"]
    assert [{one.image, one.other_image} for one in near] == [{170, 192}]
    assert found.sets is None
    only = find(model(), images, kinds=("label",))
    assert [one for one in only.listed if one.kind != "label"] == []
    with pytest.raises(ValueError, match="'labels'; allowed: label, two_clusters"):
        find(model(), images, kinds=("labels",))


def test_identities_of_another_set(planted):
    """The first five classes of the same pictures under other names, with noise of their own."""
    images, labels = pictures()
    keep = labels < 5
    noisy = np.random.default_rng(5)
    other = GivenImages(
        [noised(image, noisy) for image in np.array(images)[keep]],
        labels[keep],
        [f"other{k}" for k in range(5)],
    )
    found = find(model(), planted[0], others=[("b", other)], name="a", kinds=("identity",))
    assert [(p.class_a, p.class_b) for p in sorted(found.between)] == [
        (k, 25 + k) for k in range(5)
    ]
    assert found.sets.names == ["a", "b"]
    assert set_names(["x/faces.tar", "y/faces.tar", "glyphs"]) == ["faces-1", "faces-2", "glyphs"]


def found_by(planted_images, labels, names):
    listed = find(model(), GivenImages(planted_images, labels, names), comm=Comm()).listed
    return [dataclasses.astuple(one)[:2] + dataclasses.astuple(one)[3:10] for one in listed]


def test_any_number_of_ranks_finds_the_same(ranks, planted):
    images = planted[0]
    given = {"planted_images": images.images, "labels": images.labels, "names": images.class_names}
    alone = found_by(**given)
    assert len(alone) > 11
    shared = ranks.run(found_by, 3, **given)
    assert shared[0] == alone
    assert shared[1] == []


def test_fit_is_what_a_loop_over_images_gives():
    """Own class without the image, the nearest other class: by hand, in float64."""
    draw = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(40, 8, generator=draw))
    labels = torch.arange(40) % 7
    labels[3] = 6
    fitted = fit(unit, labels, 9)  # classes 7 and 8 are empty
    rows, weights = unit.double(), fitted.weights.double()
    for k in range(40):
        others = [j for j in range(40) if labels[j] == labels[k] and j != k]
        first = sum(rows[j] for j in others)
        assert float(weights[k]) == pytest.approx(
            max(0.05, float(rows[k] @ first / first.norm())) ** 2, abs=1e-5
        )
        mean = sum(weights[j] * rows[j] for j in others)
        assert float(fitted.own[k]) == pytest.approx(float(rows[k] @ mean / mean.norm()), abs=1e-5)
        best = {}
        for c in range(7):
            if c != labels[k]:
                total = sum(weights[j] * rows[j] for j in range(40) if labels[j] == c)
                best[c] = float(rows[k] @ total / total.norm())
        nearest = max(best, key=best.__getitem__)
        assert int(fitted.nearest[k]) == nearest
        assert float(fitted.other[k]) == pytest.approx(best[nearest], abs=1e-5)


def test_blocks_change_nothing(monkeypatch):
    draw = torch.Generator().manual_seed(1)
    unit = F.normalize(torch.randn(60, 6, generator=draw))
    labels = torch.arange(60) % 11
    whole = fit(unit, labels, 11)
    monkeypatch.setattr("mpsoftmax.clean.centres.BLOCK_IMAGES", 7)
    parts = fit(unit, labels, 11)
    assert torch.equal(parts.nearest, whole.nearest)
    torch.testing.assert_close(parts.own, whole.own)


def test_near_pairs_and_likely_pairs_are_what_a_loop_gives():
    draw = torch.Generator().manual_seed(1)
    unit = F.normalize(torch.randn(60, 6, generator=draw))
    unit[40:46] = unit[3]  # more copies than neighbours that are looked at
    cosine = (unit.double() @ unit.double().T).fill_diagonal_(-2)
    expected = set()
    for row in range(60):
        for other in sorted(range(60), key=lambda one: (-float(cosine[row, one]), one))[:4]:
            if cosine[row, other] >= 0.5:
                expected.add((min(row, other), max(row, other)))
    assert near_pairs(unit, 0.5) == sorted(expected)
    means = F.normalize(torch.randn(30, 6, generator=draw))
    means[4] = 0  # a class without images
    cosine = (means.double() @ means.double().T).fill_diagonal_(-2)
    cosine[:, 4] = cosine[4] = -2
    first, second = cosine[:20, :20], cosine[20:, 20:]
    cuts = ((first, 0, 0), (second, 20, 20), (cosine[:20, 20:], 0, 20))
    mutual = {
        (a + low, int(part[a].argmax()) + high)
        for part, low, high in cuts
        for a in range(len(part))
        if part[a].max() >= 0.3 and int(part[:, int(part[a].argmax())].argmax()) == a
    }
    found = {(pair.class_a, pair.class_b) for pair in likely_pairs(means, [20, 10], 0.3)}
    assert found == {(min(pair), max(pair)) for pair in mutual} != set()


def test_two_parts_of_a_class():
    draw = torch.Generator().manual_seed(2)
    a, b = torch.eye(8)[0], torch.eye(8)[3]
    mixed = torch.stack([a] * 7 + [b] * 4) + 0.05 * torch.randn(11, 8, generator=draw)
    cosine, smaller = two_parts(F.normalize(mixed))
    assert smaller == 4
    assert abs(cosine) < 0.15
    one, _ = two_parts(F.normalize(mixed[:7]))
    assert one > 0.95


@pytest.fixture
def reviewed(planted, tmp_path):
    """The planted set on disk, and its findings as a table."""
    source = tmp_path / "faces.arrow"
    convert(planted[0], source)
    images = open_images(source)
    table = tmp_path / "findings.csv"
    write_findings(table, find(model(), images).listed)
    return source, images, table


def test_a_view_equals_a_set_written_anew(reviewed, planted, tmp_path):
    source, images, table = reviewed
    _, swapped = planted
    view = tmp_path / "views" / "faces.view.json"
    apply_table(table, source, images, view)
    opened = open_images(view)
    dropped = {one.image for one in read_findings(table) if one.action == "drop"}
    # by hand: true labels, class 24 back into 22, without what is dropped
    expected = [
        (images.image(k), f"c{22 if label == 24 else swapped.get(k, label):02d}")
        for k, label in enumerate(images.labels.tolist())
        if k not in dropped
    ]
    assert [
        (opened.image(k), opened.class_names[opened.labels[k]]) for k in range(len(opened))
    ] == expected
    assert list(opened.class_names) == [f"c{k:02d}" for k in range(CLASSES)]
    anew = tmp_path / "anew.arrow"
    convert(opened, anew)
    again = open_images(anew)
    assert again.labels.tolist() == opened.labels.tolist()
    assert [again.image(k) for k in range(len(again))] == [image for image, _ in expected]
    assert view.stat().st_size < 2000


def test_a_view_is_of_one_set_only(reviewed, tmp_path):
    source, images, table = reviewed
    view = tmp_path / "faces.view.json"
    apply_table(table, source, images, view)
    tree = json.loads(view.read_text())
    for change, problem in (
        ({"drop": [999]}, "drop 999; allowed: 0..192"),
        ({"relabel": [[3, 77]]}, "relabel to 77"),
        ({"relabel": [[3, 1.5]]}, "damaged"),
        ({"merge": [[0, -1]]}, "merge -1"),
        ({"format": 9}, "format 1 expected"),
        ({"drop": [3], "relabel": [[3, 1]]}, "both dropped and relabelled"),
        ({"source": "faces.view.json"}, "view of a view"),
    ):
        view.write_text(json.dumps({**tree, **change}))
        with pytest.raises(ValueError, match=problem):
            open_images(view)
    view.write_text(json.dumps(tree))
    other, labels = pictures(seed=3)
    source.unlink()
    convert(GivenImages(other, labels, [f"c{k:02d}" for k in range(CLASSES)]), source)
    with pytest.raises(ValueError, match="made for a set with"):
        open_images(view)


def test_tables_that_do_not_match_are_refused(reviewed, tmp_path):
    source, images, table = reviewed
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    image = next(k for k, line in enumerate(lines) if line["action"] == "relabel")
    pair = next(k for k, line in enumerate(lines) if line["kind"] == "identity")
    for number, change, problem in (
        (image, {"image": "5"}, f"line {image + 2}: image 5 is"),
        (image, {"class_name": "x"}, "is 'x'; in the data it is"),
        (image, {"to_class": "400"}, "class 400 is .*; in the data it is not there"),
        (image, {"action": "merge"}, "action merge; allowed for it: drop, relabel, keep"),
        (image, {"action": "delete"}, "action 'delete'; allowed: drop, relabel, merge, keep"),
        (image, {"to_class": "-1"}, "relabel without to_class"),
        (image, {"image": "x"}, "whole numbers"),
        (pair, {"action": "drop"}, "allowed for it: merge, keep"),
    ):
        changed = [dict(line) for line in lines]
        changed[number].update(change)
        bad = tmp_path / "bad.csv"
        with bad.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys())
            writer.writeheader()
            writer.writerows(changed)
        with pytest.raises(ValueError, match=problem):
            apply_table(bad, source, images, tmp_path / "v.view.json")
    with pytest.raises(ValueError, match=r"allowed: a name ending in \.view\.json"):
        apply_table(table, source, images, tmp_path / "v.json")
    assert not (tmp_path / "v.view.json").exists()


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_its_text_is_escaped(planted, tmp_path):
    images = planted[0]
    hostile = GivenImages(images.images, images.labels, list(images.class_names))
    hostile.class_names[int(images.labels[0])] = '<script>alert("x")</script>'
    findings = find(model(), hostile).listed
    write_page(tmp_path / "p.html", hostile, findings)
    page = Page()
    page.feed((tmp_path / "p.html").read_text())
    assert "script" not in page.tags
    assert "&lt;script&gt;" in (tmp_path / "p.html").read_text()
    assert page.tags.count("article") == len(findings)
    assert len(page.sources) > 3 * len(findings)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)


def test_the_command(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mpsoftmax.models.open_model", lambda *_, **__: model())
    convert(planted[0], tmp_path / "a.parquet")
    out = tmp_path / "review"
    arguments = [
        "clean",
        "run",
        str(tmp_path / "a.parquet"),
        str(out),
        "--other",
        str(tmp_path / "a.parquet"),
    ]
    arguments += ["--reader", "image_column=image"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "10 relabel" in said
    assert "OUT.view.json --reader image_column=image\n" in said
    assert (out / "identities.csv").read_text().count("\n") > 10
    assert main(arguments) == 2
    assert "holds findings already" in capsys.readouterr().err
    view = tmp_path / "a.view.json"
    table = str(out / "findings.csv")
    assert main(["clean", "--apply", table, str(tmp_path / "a.parquet"), str(view)]) == 0
    assert "192 of 193 images, 24 of 25 classes" in capsys.readouterr().out
    assert main(["inspect", str(view)]) == 0
    assert main(["clean", "--apply", table, str(view)]) == 2
    assert "1 paths with --apply" in capsys.readouterr().err
    both = ["clean", "--apply", table, str(tmp_path / "a.arrow"), str(tmp_path / "b.view.json")]
    assert main([*both, "--other", "more.tar"]) == 2
    assert "not used with --apply" in capsys.readouterr().err


def test_glyph_like_pixels_are_no_near_duplicates_of_blank_ones():
    from mpsoftmax.clean.near_duplicates import same_pictures

    blank = np.full((24, 24, 3), 255, np.uint8)
    assert same_pictures([(0, 1)], lambda _: blank) == []
    picture = np.asarray(Image.linear_gradient("L").resize((24, 24)).convert("RGB"))
    assert same_pictures([(0, 1)], lambda _: picture) == [(0, 1, pytest.approx(1.0))]
