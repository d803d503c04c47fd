"""`mpsoftmax evaluate`: any number of ranks gives the same figures; nothing a checkpoint names is run."""

import json

import numpy as np
import pytest
from small_runs import summed

from mpsoftmax.cli import main
from mpsoftmax.comm import AgreedError, Comm
from mpsoftmax.config import load
from mpsoftmax.data.convert import convert
from mpsoftmax.data.pairs import PairSet, write_bin
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.judge.judge import judge
from mpsoftmax.judge.options import Options
from mpsoftmax.train.evaluation import check_pairs
from mpsoftmax.train.loop import Trainer


def train(folder, evaluation):
    config = load(
        None,
        [
            f"run.dir={folder}",
            "data.train=synthetic",
            "data.synthetic={num_classes: 20, images_per_class: 8}",
            f"data.eval=[{evaluation}]",
            "data.image_size=[16, 16]",
            "data.workers=0",
            "data.augment=none",
            "data.seed=1",
            "backbone={name: small, embedding_dim: 16}",
            "backbone.options={widths: [8, 16], depths: [1, 1]}",
            "head.objective={kind: cosface, scale: 16, margin: 0.1}",
            "train.steps=30",
            "train.batch_size=32",
            "train.optimizer.lr=0.05",
            "track.wandb=disabled",
        ],
    )
    return Trainer(config, Comm()).run().evaluations


def judged(model, data, trust_code=False):
    options = Options(with_baseline=True)
    verdict = judge(str(model), str(data), Comm(), options=options, trust_code=trust_code)
    return verdict.values, verdict.text


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """100 pairs of classes that are not trained on (another seed), as a .bin."""
    images = Synthetic(num_classes=20, images_per_class=8, size=(16, 16), seed=9)
    draw = np.random.default_rng(0)
    rows = []
    for k in range(100):
        a, b = draw.choice(20, 2, replace=False)
        first, second = draw.choice(8, 2, replace=False)
        rows.append((a * 8 + first, (a if k % 10 < 5 else b) * 8 + second))
    same = np.array([k % 10 < 5 for k in range(100)])
    path = tmp_path_factory.mktemp("pairs") / "pairs.bin"
    write_bin(path, PairSet(images, np.array(rows), same))
    return path


def test_the_same_figures_in_training_and_after_it_on_any_number_of_ranks(ranks, tmp_path, pairs):
    during = ranks.run(train, 2, folder=tmp_path / "run", evaluation=pairs)
    assert during[0] == during[1]
    results = [
        ranks.run(judged, world, model=tmp_path / "run", data=pairs)[0] for world in (1, 2, 3)
    ]
    for values, text in results:
        assert values == results[0][0]
        assert "accuracy (10 folds)" in text
        assert "raw pixels: accuracy" in text
    values = results[0][0]
    assert values["step"] == 30
    assert values["verification"]["accuracy"] == during[0][0]["accuracy"]
    assert values["verification"]["accuracy"] > 0.7
    json.dumps(values)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-30"
    assert ranks.run(judged, 1, model=checkpoint, data=pairs)[0][0] == values


def test_code_named_by_a_checkpoint_is_not_run(ranks, tmp_path, pairs):
    ranks.run(train, 1, folder=tmp_path, evaluation=pairs)
    state = tmp_path / "checkpoints" / "step-30" / "state.json"
    tree = json.loads(state.read_text())
    tree["config"]["backbone"] = {"name": "os:abort", "embedding_dim": 16}
    state.write_text(json.dumps(tree))
    summed(state.parent)
    with pytest.raises(AssertionError, match="only with --trust-code"):
        ranks.run(judged, 1, model=tmp_path, data=pairs)


def test_missing_models_and_data(ranks, tmp_path, pairs):
    with pytest.raises(AssertionError, match="neither a run folder"):
        ranks.run(judged, 2, model=tmp_path, data=pairs)
    ranks.run(train, 1, folder=tmp_path / "run", evaluation=pairs)
    with pytest.raises(AssertionError, match="no such file; allowed: glyphs-open"):
        ranks.run(judged, 1, model=tmp_path / "run", data="nothing.bin")
    images = Synthetic(num_classes=2, images_per_class=1, size=(16, 16))
    few = tmp_path / "few.bin"
    write_bin(few, PairSet(images, np.tile([0, 1], (9, 1)), np.arange(9) % 2 == 0))
    why = f"{few}: 9 pairs, 5 of them of the same class; allowed: at least 10, of both kinds"
    said = ranks.run(refusals, 2, folder=tmp_path, evaluation=few)
    assert said == [(f"data.eval: {why}", f"data: {why}")] * 2


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_one_kind_are_refused(same):
    check_pairs(np.array([same] * 9 + [not same]), "a.csv")
    with pytest.raises(ValueError, match=rf"a\.csv: 12 pairs, {12 * same} of them .* both kinds"):
        check_pairs(np.full(12, same), "a.csv")


def refusals(folder, evaluation):
    """What training and judging, both before they begin, say of a set."""
    with pytest.raises(AgreedError) as trained:
        train(folder / "other", evaluation)
    with pytest.raises(AgreedError) as evaluated:
        judged(folder / "run", evaluation)
    return str(trained.value), str(evaluated.value)


def test_convert_and_inspect_commands(tmp_path, capsys):
    archive = tmp_path / "set.arrow"
    images = Synthetic(num_classes=6, images_per_class=2, size=(16, 16))
    convert(images, tmp_path / "s.tar", number_classes=True)
    assert main(["convert", str(tmp_path / "s.tar"), str(archive)]) == 0
    assert main(["inspect", str(archive), "--sample", "5"]) == 0
    said = capsys.readouterr()
    assert "12 images, 6 classes" in said.out
    assert main(["convert", str(tmp_path / "s.tar"), str(archive)]) == 2
    said = capsys.readouterr()
    assert "error:" in said.err
    assert str(archive) in said.err
