"""Our runs as arcface_torch's checkpoints: rows cut by its rule, an optimiser that torch itself loads."""

import arcface_files
import pytest
import torch
from small_runs import final_tensors, train

from mpsoftmax.cli import main
from mpsoftmax.head.candidates import Uniform
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.row_optim import RowSGD
from mpsoftmax.migrate.classifiers import convert_classifier

NETS = (
    "backbone={name: mobilefacenet, embedding_dim: 16, options: {blocks: [1, 1, 1, 1], scale: 1}}"
)


def test_back_and_forth_is_the_same(tmp_path, capsys):
    """3 of their files -> ours -> 4 of their files -> ours: tensors to the bit."""
    arcface_files.write_checkpoints(tmp_path / "old", world=3)
    config = arcface_files.write_config(tmp_path / "configs")
    convert_classifier(tmp_path / "old", tmp_path / "run", config_file=config)
    wanted = ["convert", str(tmp_path / "run"), str(tmp_path / "new"), "--to", "arcface_torch"]
    assert main([*wanted, "--world", "4"]) == 0
    assert "23 classes x 16, epoch 0, iteration 14" in capsys.readouterr().out
    files = [
        torch.load(tmp_path / "new" / f"checkpoint_gpu_{rank}.pt", weights_only=True)
        for rank in range(4)
    ]
    assert [len(file["state_dict_softmax_fc"]["weight"]) for file in files] == [6, 6, 6, 5]
    convert_classifier(tmp_path / "new", tmp_path / "again", config_file=config, world=3)
    first, second = final_tensors(tmp_path / "run"), final_tensors(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_of_ours_is_loaded_by_torch(ranks, tmp_path, kind, capsys):
    """As train_v2.py loads it: strictly, into its optimiser of backbone and shard."""
    overrides = (
        NETS,
        f"train.optimizer.kind={kind}",
        f"head.optimizer.kind={kind}",
        "train.steps=3",
    )
    ranks.run(train, 2, folder=tmp_path / "run", overrides=overrides)
    wanted = ["convert", str(tmp_path / "run"), str(tmp_path / "new"), "--to", "arcface_torch"]
    assert main([*wanted, "--world", "2"]) == 0
    assert "this run's is cosine" in capsys.readouterr().out
    saved = final_tensors(tmp_path / "run")
    for rank, (low, high) in enumerate(((0, 12), (12, 23))):
        file = torch.load(tmp_path / "new" / f"checkpoint_gpu_{rank}.pt", weights_only=True)
        backbone, weight = arcface_files.net(), torch.nn.Parameter(torch.empty(high - low, 16))
        optimizer = arcface_files.optimizer_of(kind, backbone, weight)
        backbone.load_state_dict(file["state_dict_backbone"])
        optimizer.load_state_dict(file["state_optimizer"])
        assert torch.equal(file["state_dict_softmax_fc"]["weight"], saved["head.weight"][low:high])
        rows = {"sgd": {"momentum_buffer": "momentum"}}.get(
            kind, {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}
        )
        for theirs, ours in rows.items():
            assert torch.equal(optimizer.state[weight][theirs], saved[f"head.{ours}"][low:high])
        for name, parameter in backbone.named_parameters():
            for theirs in rows:
                expected = saved[f"optimizer.{name}.{theirs}"]
                assert torch.equal(optimizer.state[parameter][theirs], expected)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    model = torch.load(tmp_path / "new" / "model.pt", weights_only=True)
    assert torch.equal(
        model["conv_sep.layers.0.weight"], saved["backbone.conv_sep.layers.0.weight"]
    )


def test_rows_left_behind_are_caught_up(ranks, tmp_path):
    """A lazy run, whose table is behind, against a head that is asked for its rows."""
    sampled = (
        "head.candidates={kind: uniform, rate: 0.2}",
        "head.untouched=lazy",
        "train.batch_size=4",
    )
    ranks.run(train, 2, folder=tmp_path / "run", overrides=(NETS, *sampled))
    stored = final_tensors(tmp_path / "run")
    assert int(stored["head.row_step"].min()) < 10  # something is behind
    main(["convert", str(tmp_path / "run"), str(tmp_path / "new"), "--to", "arcface_torch"])
    file = torch.load(tmp_path / "new" / "checkpoint_gpu_0.pt", weights_only=True)
    head = ModelParallelSoftmax(
        16, 23, candidates=Uniform(0.2), optimizer=RowSGD(0.1, 0.9, 5e-4), untouched="lazy"
    )
    names = head.state_dict().keys()
    head.load_state_dict({name: stored[f"head.{name}"] for name in names})
    now = file["state_dict_softmax_fc"]["weight"]
    torch.testing.assert_close(now, head.class_rows(torch.arange(23)))
    assert not torch.allclose(now, stored["head.weight"])
    number = len(file["state_optimizer"]["param_groups"][0]["params"])
    momentum = file["state_optimizer"]["state"][number]["momentum_buffer"]
    expected_rows, expected = by_steps(stored, head)
    torch.testing.assert_close(now.double(), expected_rows, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(momentum.double(), expected, rtol=1e-5, atol=1e-6)


def by_steps(stored, head):
    """Every missed step by itself, in float64: m <- mu m + wd w; w <- w - lr m."""
    rows, momentum = stored["head.weight"].double(), stored["head.momentum"].double()
    for number, step in enumerate(stored["head.row_step"].tolist()):
        for lr, mu, decay in stored["head.step_log"].tolist()[step:]:
            momentum[number] = mu * momentum[number] + decay * rows[number]
            rows[number] -= lr * momentum[number]
    return rows, momentum


def test_what_has_no_row_a_class_is_refused(ranks, tmp_path, capsys):
    several = (NETS, "head.weights={kind: sub_centres, num: 2}", "train.steps=1")
    ranks.run(train, 1, folder=tmp_path / "run", overrides=several)
    wanted = ["convert", str(tmp_path / "run"), str(tmp_path / "new"), "--to", "arcface_torch"]
    assert main(wanted) == 2
    assert "head.weights" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([wanted[0], str(tmp_path), *wanted[2:]]) == 2
    assert "neither a run folder" in capsys.readouterr().err
