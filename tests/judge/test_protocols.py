"""`mpsoftmax evaluate`: every protocol on files, by a trained model and by given embeddings; comparisons."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from ijb_folder import write_ijb
from PIL import Image
from small_runs import train as train_run

from mpsoftmax.cli import main
from mpsoftmax.comm import Comm
from mpsoftmax.data.convert import convert
from mpsoftmax.data.folder import open_folder
from mpsoftmax.data.ijb import open_ijb
from mpsoftmax.data.image_names import names_of
from mpsoftmax.data.open import open_images
from mpsoftmax.data.reid import open_reid
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.data.view import write_view
from mpsoftmax.evaluate.identification import identify
from mpsoftmax.evaluate.reid import Sightings, reidentify
from mpsoftmax.evaluate.retrieval import retrieve
from mpsoftmax.judge import identification
from mpsoftmax.judge.judge import judge, protocol_for
from mpsoftmax.judge.options import Options
from mpsoftmax.judge.source import open_source
from mpsoftmax.models import open_model

FEW = Options(num_bootstrap=50)
# One process without a process group saves and loads checkpoints here, which torch remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:.*single process")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run and a shorter one."""
    folder = tmp_path_factory.mktemp("runs")
    train_run(folder / "long", ("train.steps=30", "train.optimizer.lr=0.05"))
    train_run(folder / "short", ("train.steps=2",))
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of 10 classes of 1 to 6 images."""
    root = tmp_path_factory.mktemp("people") / "set"
    images = Synthetic(num_classes=10, images_per_class=6, size=(16, 16), seed=3)
    write(root, images, lambda label, place: place < 6 - label // 2)
    return root


def write(root, images, wanted):
    for row, label in enumerate(images.labels):
        if wanted(label, row % 6):
            (root / f"p{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.image(row)).save(root / f"p{label}" / f"{row % 6}.png")
    return root


def embedded(run, images, **options):
    return open_model(run).embed(images, mirror=True, **options)


def values_of(model, data, options=FEW, **more):
    return judge(
        str(model), None if data is None else str(data), Comm(), options=options, **more
    ).values


def figures(result):
    return {name: one["value"] for name, one in result["figures"].items()}


def test_retrieval_within_a_folder(runs, people):
    found = values_of(runs / "long", people, protocol="retrieval")
    images = open_folder(people)
    rows, labels = embedded(runs / "long", images), np.asarray(images.labels)
    expected = retrieve(rows, labels, rows, labels, own=np.arange(len(labels))).values()
    assert figures(found["retrieval"]) == pytest.approx(expected, abs=1e-9)
    assert (found["schema"], found["step"], found["protocol"]) == (1, 30, "retrieval")
    assert found["retrieval"]["num_bootstrap"] == 50
    low, high = found["retrieval"]["figures"]["mAP_at_R"]["interval"]
    assert low < expected["mAP_at_R"] < high
    json.dumps(found)


def test_retrieval_from_a_gallery_with_distractors(runs, people, tmp_path):
    images = Synthetic(num_classes=12, images_per_class=6, size=(16, 16), seed=3)
    gallery = write(tmp_path / "gallery", images, lambda label, place: label > 3 and place > 3)
    nobody = Synthetic(num_classes=4, images_per_class=6, size=(16, 16), seed=8)
    write(tmp_path / "nobody", nobody, lambda label, place: True)
    options = Options(gallery=str(gallery), distractors=str(tmp_path / "nobody"), num_bootstrap=0)
    found = values_of(runs / "long", people, options, protocol="retrieval")["retrieval"]
    sets = [open_folder(path) for path in (people, gallery, tmp_path / "nobody")]
    rows = [embedded(runs / "long", one) for one in sets]
    names = [[one.class_names[label] for label in one.labels] for one in sets]
    numbers = {name: k for k, name in enumerate(sorted({*names[0], *names[1]}))}
    expected = retrieve(
        torch.cat(rows[1:]),
        np.array([numbers[name] for name in names[1]] + [-1] * 24),
        rows[0],
        np.array([numbers[name] for name in names[0]]),
    )
    assert figures(found) == pytest.approx(expected.values(), abs=1e-9)
    assert found["counts"] == dict(expected.counts)
    assert found["counts"]["queries_without_a_match"] > 0
    assert found["counts"]["distractors"] == 24 + 2 * 2  # and two people nobody asks for


def test_identification_within_a_folder(runs, people):
    options = Options(unknown=0.4, num_bootstrap=50)
    found = values_of(runs / "long", people, options, protocol="identification")
    counts = found["identification"]["counts"]
    # classes 0..9 have 6 6 5 5 4 4 3 3 2 2 images; 4 of 10 people are kept out with all their images
    assert counts["people_in_the_gallery"] == 6
    assert counts["mated_searches"] + counts["other_searches"] == 40 - 6
    closed = values_of(
        runs / "long", people, Options(unknown=0.0, num_bootstrap=0), protocol="identification"
    )
    images = open_folder(people)
    rows, labels = embedded(runs / "long", images), np.asarray(images.labels)
    first = np.unique(labels, return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(labels)), first)
    expected = identify(rows[first], labels[first], rows[rest], labels[rest]).values()
    assert figures(closed["identification"]) == pytest.approx(expected, abs=1e-9)
    assert not any(name.startswith("tpir") for name in closed["identification"]["figures"])


@pytest.mark.slow
def test_glyphs_are_retrieved_from_one_font(tmp_path):
    train_run(tmp_path, ("train.steps=1", "data.glyphs={system_fonts: false}"))
    found = values_of(tmp_path, "glyphs-open", FEW, protocol="retrieval")["retrieval"]
    assert found["counts"]["queries"] > found["counts"]["gallery_items"] > 100
    assert found["counts"]["queries_without_a_match"] == 0
    assert 0 < found["figures"]["recall_at_1"]["value"] < 1
    # One image of a character in the gallery: the two figures are the same question.
    assert found["figures"]["recall_at_1"]["value"] == found["figures"]["mAP_at_R"]["value"]
    source = open_source(str(tmp_path), Comm())
    task = identification.open_task("glyphs-open", [source], FEW)
    gallery, probes = task.labels[task.gallery], task.labels[task.queries]
    assert len(np.unique(gallery)) == len(gallery)
    strangers = np.setdiff1d(probes, gallery)
    assert len(strangers) == round(0.2 * len(np.unique(probes)))


def reid_folder(root):
    images = Synthetic(num_classes=8, images_per_class=6, size=(16, 16), seed=4)
    for row, label in enumerate(images.labels):
        place = row % 6
        folder = "query" if place == 0 else "bounding_box_test"
        (root / folder).mkdir(parents=True, exist_ok=True)
        person = -1 if (label, place) == (7, 5) else label
        name = f"{person:04d}_c{1 + place % 3}s1_{row:06d}_00.png"
        Image.fromarray(images.image(row)).save(root / folder / name)
    return root


def test_reid_is_told_from_the_folder(runs, tmp_path):
    root = reid_folder(tmp_path / "market")
    found = values_of(runs / "long", root)
    assert found["protocol"] == "reid"
    task = open_reid(root)
    rows = embedded(runs / "long", task.images)
    query, gallery = (
        Sightings(rows[side], task.people[side], task.cameras[side])
        for side in (task.is_query, ~task.is_query)
    )
    assert figures(found["reid"]) == pytest.approx(reidentify(query, gallery).values(), abs=1e-9)
    assert found["reid"]["counts"]["gallery_images"] == 39


def test_templates_are_told_from_the_folder(runs, tmp_path):
    root = write_ijb(tmp_path / "ijb")
    found = values_of(runs / "long", root)
    assert found["protocol"] == "template"
    assert set(found["template_1_1"]["figures"]) >= {"tar_at_far_1e-06", "tar_at_far_0.1", "auc"}
    assert "rank_1" in found["template_1_n"]["figures"]
    plain = values_of(runs / "long", root, Options(by_norm=False, by_score=False, num_bootstrap=0))
    assert plain["template_1_1"]["figures"]["auc"] != found["template_1_1"]["figures"]["auc"]


def test_templates_by_unit_embeddings_and_their_norms(runs, tmp_path):
    """As `mpsoftmax embed` writes them: faces weigh by a length that the embedding itself lost."""
    root, options = write_ijb(tmp_path / "ijb"), Options(num_bootstrap=0)
    images = open_ijb(root).images
    raw = embedded(runs / "long", images, normalise=False)
    unit, norms = torch.nn.functional.normalize(raw), raw.norm(dim=1).tolist()
    files = [
        table(tmp_path / f"{number}.parquet", names_of(images), rows.numpy(), norms=lengths)
        for number, (rows, lengths) in enumerate([(raw, None), (unit, norms), (unit, None)])
    ]
    by_raw, by_norms, by_unit = (values_of(file, root, options) for file in files)
    for name in ("template_1_1", "template_1_n"):
        assert figures(by_norms[name]) == pytest.approx(figures(by_raw[name]), abs=1e-4)
    assert figures(by_unit["template_1_1"]) != pytest.approx(
        figures(by_raw["template_1_1"]), abs=1e-4
    )


def on_ranks(runs, folder):
    return values_of(runs / "long", folder)


@pytest.mark.parametrize("world", [3])
def test_templates_on_ranks(ranks, runs, tmp_path, world):
    root = write_ijb(tmp_path / "ijb")
    expected = values_of(runs / "long", root)
    for found in ranks.run(on_ranks, world, runs=runs, folder=root):
        for name in ("template_1_1", "template_1_n"):
            assert figures(found[name]) == pytest.approx(figures(expected[name]), abs=1e-4)


def test_two_models_by_the_command(runs, people, tmp_path, capsys):
    out = tmp_path / "out.json"
    command = ["evaluate", str(runs / "long"), "--against", str(runs / "short")]
    command += ["--data", str(people), "--bootstrap", "50", "--json", str(out)]
    assert main([*command, "--protocol", "retrieval"]) == 0
    assert "retrieval: first - second" in capsys.readouterr().out
    found = json.loads(out.read_text())
    one = found["comparison"]["retrieval"]["differences"]["mAP_at_R"]
    ours, theirs = (
        side["retrieval"]["figures"]["mAP_at_R"]["value"] for side in (found, found["against"])
    )
    assert (one["first"], one["second"]) == (ours, theirs)
    assert one["difference"] == ours - theirs
    assert one["interval"][0] <= one["difference"] <= one["interval"][1]
    assert 0 < one["p_permutation"] <= 1
    assert main(command) == 2
    assert "allowed: --protocol identification, --protocol retrieval" in capsys.readouterr().err


# --- given embeddings ----------------------------------------------------------------------


def table(path, names, rows, labels=None, norms=None):
    columns = {"name": list(names), "embedding": [list(map(float, row)) for row in rows]}
    if labels is not None:
        columns["label"] = list(labels)
    if norms is not None:
        columns["norm"] = norms
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_given_embeddings_are_judged_as_the_model_that_made_them(runs, people, tmp_path):
    images = open_folder(people)
    rows = embedded(runs / "long", images, normalise=False).numpy()
    turned = np.random.default_rng(0).permutation(len(rows))
    path = table(tmp_path / "e.parquet", [images.paths[k] for k in turned], rows[turned])
    for protocol in ("retrieval", "identification"):
        by_model = values_of(runs / "long", people, protocol=protocol)[protocol]
        given = values_of(path, people, protocol=protocol)
        assert figures(given[protocol]) == pytest.approx(figures(by_model), abs=1e-4)
        assert (given["model"], given["step"]) == (str(path), None)
    labels = [f"p{k}" for k in np.asarray(images.labels)[turned]]
    own = table(tmp_path / "l.parquet", [str(k) for k in turned], rows[turned], labels)
    alone = values_of(own, None)
    assert figures(alone["retrieval"]) == pytest.approx(
        figures(values_of(path, people, protocol="retrieval")["retrieval"]), abs=1e-4
    )


def test_what_embed_wrote_is_judged_as_the_model(runs, people, tmp_path):
    """The names that one command writes are those that the other looks for; unknown labels are null."""
    path, photo = tmp_path / "e.parquet", tmp_path / "people" / "photo.png"
    shutil.copytree(people, tmp_path / "people")
    Image.new("RGB", (16, 16), (200, 30, 90)).save(photo)  # in no class folder
    command = ["embed", str(runs / "long"), str(tmp_path / "people"), str(path), "--mirror"]
    assert main(command) == 0
    expected = values_of(runs / "long", people, protocol="retrieval")["retrieval"]
    for data in (people, None):
        given = values_of(path, data, protocol="retrieval")["retrieval"]
        assert figures(given) == pytest.approx(figures(expected), abs=1e-4)
        assert given["counts"] == expected["counts"]


def judge_damaged(run, folder):
    with pytest.raises(ValueError, match="corrupt image") as problem:
        values_of(run, folder, protocol="retrieval")
    return str(problem.value)


def test_an_image_that_one_rank_cannot_read_stops_all(ranks, runs, people, tmp_path):
    folder = tmp_path / "people"
    shutil.copytree(people, folder)
    (folder / "p9" / "1.png").write_bytes(b"no picture")  # of the last rank's share
    said = ranks.run(judge_damaged, 3, run=runs / "short", folder=folder)
    assert len(set(said)) == 1
    assert said[0].startswith("rank 2: corrupt image")
    assert "p9/1.png" in said[0]


def test_every_labelled_format_is_judged_alike(runs, people, tmp_path):
    """Parquet, a list and a view too, by the model and by what embed wrote of them."""
    expected = figures(values_of(runs / "long", people, protocol="retrieval")["retrieval"])
    shards, view = tmp_path / "all-000.parquet", tmp_path / "p.view.json"
    convert(people, shards)
    write_view(view, shards, open_images(shards), drop=[], relabel={}, merge=[])
    images = open_folder(people)
    lines = [f"{path}\t{label}" for path, label in zip(images.paths, images.labels, strict=True)]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    listed = f"{tmp_path / 'list.txt'}@{people}"
    for number, data in enumerate((shards, tmp_path / "all-{000..000}.parquet", view, listed)):
        out = tmp_path / f"e{number}.parquet"
        assert main(["embed", str(runs / "long"), str(data), str(out), "--mirror"]) == 0
        for model in (runs / "long", out):
            found = values_of(model, data, Options(num_bootstrap=0), protocol="retrieval")
            assert figures(found["retrieval"]) == pytest.approx(expected, abs=1e-4)
        if data is not listed:
            with pytest.raises(ValueError, match="labelled set"):
                protocol_for(str(data))


def test_missing_embeddings(runs, people, tmp_path):
    images = open_folder(people)
    rows = embedded(runs / "long", images).numpy()
    path = table(tmp_path / "e.parquet", list(images.paths)[5:], rows[5:])
    with pytest.raises(ValueError, match=r"no embedding of 'p0/0.png' \(5 of 40 images"):
        values_of(path, people, protocol="retrieval")
    found = values_of(
        path, people, protocol="retrieval", skip_missing=True, against=str(runs / "long")
    )
    assert found["retrieval"]["counts"]["gallery_items"] == 35
    assert found["against"]["retrieval"]["counts"]["gallery_items"] == 35


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a", "a"], "embedding": [[1.0], [2.0]]}, "a name occurs twice"),
        ({"name": ["a", "b"]}, "missing .'embedding'."),
        ({"name": ["a", "b"], "embedding": [[1.0], [2.0, 3.0]]}, "lists of one length"),
        ({"name": ["a", "b"], "embedding": [[1.0], [float("nan")]]}, "finite numbers"),
        ({"name": ["a", "b"], "embedding": [1.0, 2.0]}, "lists of numbers"),
        ({"name": ["a", None], "embedding": [[1.0], [2.0]]}, "without nulls"),
        ({"name": [1, 2], "embedding": [[1.0], [2.0]]}, "text in column name"),
        (
            {"name": ["a"], "embedding": [[1.0]], "norm": [-1.0]},
            "column norm: finite numbers, none",
        ),
        ({"name": ["a"], "embedding": [[1.0]], "norm": ["x"]}, "column norm: numbers expected"),
        (
            {"name": ["a"], "embedding": [[1.0]], "norm": [None]},
            "column norm: values without nulls",
        ),
        ({"name": ["a", "b"], "embedding": [[1.0], [2.0]]}, "data: allowed to be left out"),
    ],
)
def test_malformed_embeddings(tmp_path, columns, message):
    path = tmp_path / "e.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=message):
        values_of(path, None)
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="Parquet expected"):
        values_of(path, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unknown": 1.0}, r"unknown: 1\.0; allowed: 0 or more, below 1"),
        ({"gallery_images": 0}, "gallery_images: 0; allowed: 1 or more"),
        ({"num_bootstrap": -1}, "num_bootstrap: -1; allowed: 0 or more"),
    ],
)
def test_options_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Options(**values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(gallery="nowhere"), "no such file or folder"),
        (
            Options(gallery_images=10),
            r"gallery_images: 10 leaves no .*; allowed: 1\.\.5, as nobody",
        ),
        (Options(unknown=0.99), r"unknown: 0\.99 of \d+ people leaves none in the gallery"),
        (Options(thresholds="insightface"), "thresholds: .*; not used by identification; allowed"),
        (Options(backend="faiss"), "backend: 'faiss'; not used by identification"),
    ],
)
def test_bad_options(runs, people, options, message):
    with pytest.raises(ValueError, match=message):
        values_of(runs / "short", people, options, protocol="identification")


def test_identification_needs_two_images_of_somebody(runs, tmp_path):
    images = Synthetic(num_classes=3, images_per_class=6, size=(16, 16))
    single = write(tmp_path / "single", images, lambda label, place: place == 0)
    with pytest.raises(ValueError, match="single: nobody has two images; allowed: one for the"):
        values_of(runs / "short", single, protocol="identification")
    other = write(tmp_path / "other", images, lambda label, place: label == 1)
    (other / "p1").rename(other / "somebody else")
    with pytest.raises(ValueError, match=r"gallery: .*other: holds nobody of .*single; allowed"):
        values_of(runs / "short", single, Options(gallery=str(other)), protocol="identification")


def test_what_holds_no_pairs_is_not_verified(runs, people):
    for data, message in (
        (
            people,
            "data: '.*set': a labelled set, and verification needs pairs; allowed: glyphs-open",
        ),
        (
            "held-back",
            r"data: 'held-back': the training held no classes back \(data\.held_back: 0\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            values_of(runs / "short", data, protocol="verification")


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("retrieval", Options(fusion="mean"), "fusion: 'mean'; not used by retrieval"),
        ("retrieval", Options(unknown=0.1), "allowed with identification"),
        ("identification", Options(thresholds="insightface"), "allowed with verification"),
        ("reid", Options(gallery="x"), "allowed with identification, retrieval"),
        ("verification", Options(by_norm=False), "allowed with template"),
    ],
)
def test_an_option_of_another_protocol_is_not_ignored(runs, people, protocol, options, message):
    with pytest.raises(ValueError, match=message):
        values_of(runs / "short", people, options, protocol=protocol)


def test_which_protocol(tmp_path, people):
    assert protocol_for("glyphs-open") == "verification"
    assert protocol_for("lfw.bin") == "verification"
    assert protocol_for("pairs.csv@images.tar") == "verification"
    assert protocol_for(None) == "retrieval"
    with pytest.raises(ValueError, match="no such file"):
        protocol_for("nothing.tar")
    with pytest.raises(ValueError, match="no such file"):
        protocol_for("nothing.parquet")
    with pytest.raises(ValueError, match="labelled set"):
        protocol_for(str(people))


# --- real data -----------------------------------------------------------------------------


def test_pku_reid(runs, shared_data):
    found = values_of(runs / "short", shared_data / "pku_reid74.tar")
    counts = found["reid"]["counts"]
    assert (counts["queries"], counts["gallery_images"]) == (96, 96)
    assert 0 < found["reid"]["figures"]["mAP"]["value"] < 1


def test_ready_embeddings_of_real_faces(shared_data):
    """dlib's embeddings: 781 of the pairs have both, 98.7 % of them judged right by distance 0.6."""
    data = f"{shared_data / 'lfw_test_a_pairs.csv'}@{shared_data / 'lfw_test_a.tar'}"
    found = values_of(shared_data / "emb_lfw_dlib.parquet", data, skip_missing=True)
    verification = found["verification"]
    assert (verification["num_genuine"], verification["num_impostors"]) == (381, 400)
    assert verification["accuracy"] > 0.97
    assert verification["auc"] > 0.99
