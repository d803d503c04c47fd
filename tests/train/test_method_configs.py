"""Every configuration of configs/methods on its real data, a few steps of it, and what its user watches."""

import math

import pytest
from small_runs import lines

from mpsoftmax.comm import Comm
from mpsoftmax.config import load
from mpsoftmax.train.loop import Trainer

WATCHED = {
    "adacos": {"scale"},
    "adaface": {"feature_norm"},
    "arcface_straight_through": {"target_cosine"},
    "baskets": {"rejected_share", "rejected_negatives", "rejected_share_0", "rejected_share_1"},
    "circle": {"hard_negatives"},
    "curricularface": {"hard_share", "hard_negatives"},
    "dsoftmax": {"q"},
    "dsoftmax_b": {"q"},
    "dsoftmax_k": {"candidates"},
    "ir_a": {"centre_angle_rad"},
    "ir_am": {"centre_angle_rad"},
    "linking": {"rejected_share"},
    "magface": {"feature_norm"},
    "mvsoftmax": {"hard_share"},
    "noise_filter": {"filtered_share", "filtered_negatives"},
    "npcface": {"hard_share", "collaborative_margin"},
    "sphereface": {"feature_norm"},
    "sub_centres": {"target_cosine"},
}


def few_steps(config, overrides):
    Trainer(load(config, overrides), Comm()).run()


def test_every_method_config_is_here(pytestconfig):
    folder = pytestconfig.rootpath / "configs" / "methods"
    assert {path.stem for path in folder.glob("*.yaml")} == WATCHED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WATCHED))
def test_a_method_config_trains(ranks, tmp_path, shared_data, pytestconfig, monkeypatch, name):
    """On two ranks; only the length is cut, and what is done once at the end."""
    overrides = [f"run.dir={tmp_path}", "train.steps=3", "train.log_every=1", "data.eval=[]"]
    overrides += ["data.workers=0", "track.wandb=disabled"]
    if name in ("baskets", "linking"):
        overrides.append("head.baskets.duplicates=null")
    config = pytestconfig.rootpath / "configs" / "methods" / f"{name}.yaml"
    ranks.run(few_steps, 2, config=config, overrides=overrides)
    trained = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 2, 3]
    for line in trained:
        assert line.keys() >= WATCHED[name]
        assert all(math.isfinite(line[key]) for key in ("loss", *WATCHED[name]))
