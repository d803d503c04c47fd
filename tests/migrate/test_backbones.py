"""Pretrained backbones of insightface: detected, checked name by name, and opened by what opens ours."""

import arcface_files
import pytest
import torch
from small_runs import BASE

from mpsoftmax.backbones import build_backbone
from mpsoftmax.cli import main
from mpsoftmax.comm import Comm
from mpsoftmax.config import load
from mpsoftmax.migrate.networks import NETWORKS, detect, fitted
from mpsoftmax.models import open_model
from mpsoftmax.train.loop import Trainer


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "r200" else []) for name in NETWORKS],
)
def test_every_network_is_told_by_its_tensors(name):
    ours, options = NETWORKS[name]
    with torch.device("meta"):
        net = build_backbone(ours, embedding_dim=64, image_size=(112, 112), options=options)
    found = detect(net.state_dict())
    assert (found.name, found.embedding_dim, found.image_size) == (ours, 64, (112, 112))
    assert found.options == (options if name == "mbf_large" else {})
    assert fitted(net.state_dict(), found).keys() == net.state_dict().keys()


@pytest.mark.parametrize("wrap", ["plain", "module", "checkpoint"])
def test_a_state_dict_becomes_a_model(tmp_path, capsys, wrap):
    state = arcface_files.net().state_dict()
    file = {
        "plain": state,
        "module": {f"module.{name}": value for name, value in state.items()},
        "checkpoint": {"epoch": 3, "state_dict_backbone": state},
    }[wrap]
    torch.save(file, tmp_path / "backbone.pth")
    assert main(["convert", str(tmp_path / "backbone.pth"), str(tmp_path / "model")]) == 0
    assert "mobilefacenet, embedding_dim 16, images 16 x 16" in capsys.readouterr().out
    model = open_model(tmp_path / "model")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    expected = arcface_files.net().eval()(images)
    assert torch.equal(model.net.eval()(images), expected)


def test_a_training_starts_from_it(tmp_path, capsys):
    torch.save(arcface_files.net().state_dict(), tmp_path / "backbone.pth")
    assert main(["convert", str(tmp_path / "backbone.pth"), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    net = (
        "backbone={name: mobilefacenet, embedding_dim: 16}",
        "backbone.options={blocks: [1, 1, 1, 1], scale: 1}",
        f"backbone.start_from={tmp_path / 'model'}",
        f"run.dir={tmp_path / 'run'}",
    )
    kept = [item for item in BASE if not item.startswith("backbone")]
    trainer = Trainer(load(None, [*kept, *net]), Comm())
    trainer.log.close()
    expected = arcface_files.net().state_dict()
    assert all(torch.equal(trainer.net.state_dict()[name], v) for name, v in expected.items())
    assert "step 0" in capsys.readouterr().out


def test_what_does_not_fit_is_said(tmp_path, capsys):
    def refusal(state):
        torch.save(state, tmp_path / "backbone.pth")
        assert main(["convert", str(tmp_path / "backbone.pth"), str(tmp_path / "model")]) == 2
        assert not (tmp_path / "model").exists()
        return capsys.readouterr().err

    state = arcface_files.net().state_dict()
    strange = {**state, "head.weight": torch.ones(2)}
    del strange["layers.4.layers.0.layers.0.weight"]
    strange["conv_sep.layers.1.bias"] = torch.ones(5)
    told = refusal(strange)
    assert "looks like mobilefacenet with D = 16 at (16, 16)" in told
    assert "1 tensors missing: layers.4.layers.0.layers.0.weight" in told
    assert "1 tensors not known: head.weight" in told
    assert "1 tensors of another shape: conv_sep.layers.1.bias (5,) (expected (512,))" in told
    assert "of no network known here" in refusal({"a": torch.ones(1)})
    assert "holds no state dict" in refusal([torch.ones(1)])
    deep = {"fc.weight": torch.ones(8, 512), "layer1.0.conv1.weight": torch.ones(64, 64, 3, 3)}
    assert "stages of (1, 0, 0, 0) blocks; allowed: iresnet18 (2, 2, 2, 2)" in refusal(deep)


def test_batch_counts_may_be_missing(tmp_path):
    """Files of PyTorch 0.4 and earlier have none."""
    state = arcface_files.net().state_dict()
    old = {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    found = fitted(old, detect(old))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in old.items())


def test_tensors_of_other_ranks_are_no_crash():
    flat = {"conv_sep.layers.0.weight": torch.ones(1), "features.layers.2.weight": torch.ones(())}
    with pytest.raises(ValueError, match="have other shapes than known"):
        detect(flat)


def test_a_block_number_of_a_hostile_file_builds_no_network():
    state = dict(
        build_backbone("mobilefacenet", embedding_dim=8, image_size=(112, 112)).state_dict()
    )
    state["layers.3.layers.300000000.x"] = torch.zeros(1)
    with pytest.raises(ValueError, match="block 300000000 among"):
        detect(state)
    patches = {
        "patch_embed.proj.weight": torch.zeros(256, 3, 0, 0),
        "pos_embed": torch.zeros(1, 1, 1),
    }
    patches |= {"feature.2.weight": torch.zeros(8, 8), "blocks.0.x": torch.zeros(1)}
    patches |= {f"blocks.{k}.x": torch.zeros(1) for k in range(12)}
    with pytest.raises(ValueError, match="have other shapes than known"):
        detect(patches)
