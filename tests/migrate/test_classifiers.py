"""Classifier checkpoints of arcface_torch: resumed here at any world size, and what does not fit is named."""

import math

import arcface_files
import pytest
import torch
from small_runs import losses

from mpsoftmax.cli import main
from mpsoftmax.comm import Comm, local_rows
from mpsoftmax.config import load
from mpsoftmax.migrate.classifiers import convert_classifier
from mpsoftmax.migrate.shards import read_classifier
from mpsoftmax.train.loop import Trainer

HERE = ("data.synthetic.images_per_class=4", "data.workers=0", "train.log_every=1")


def resumed(folder, steps=None):
    """What a rank starts with; then, where asked, training to the end."""
    trainer = Trainer(load(folder / "config.yaml"), Comm())
    everyone = torch.arange(trainer.head.num_classes)
    head = trainer.head.state_dict()
    kept = {
        "step": trainer.step,
        "samples": trainer.samples,
        "rows": trainer.head.class_rows(everyone),
        "states": {n: local_rows(v).clone() for n, v in head.items() if v.dim() == 2},
        "row_step": local_rows(head["row_step"]).clone(),
        "net": {n: v.clone() for n, v in trainer.net.state_dict().items()},
        "moments": {
            name: {k: v.clone() for k, v in trainer.engine.optimizer.state[p].items()}
            for name, p in trainer.net.named_parameters()
            if p in trainer.engine.optimizer.state
        },
    }
    if steps is None:
        trainer.log.close()
    else:
        trainer.run()
    return kept


def assert_same(answers, given, names):
    rows, of_rows, net, moments = given
    for kept in answers:
        assert torch.equal(kept["rows"], rows)
        assert all(torch.equal(kept["net"][name], value) for name, value in net.items())
        assert kept["moments"].keys() == moments.keys()
        for name, state in moments.items():
            assert all(torch.equal(kept["moments"][name][k], v) for k, v in state.items())
    for theirs, ours in names.items():
        together = torch.cat([kept["states"][ours] for kept in answers])
        assert torch.equal(together, of_rows[theirs])
        assert together.abs().sum() > 0


@pytest.mark.parametrize("world", [1, 2])
def test_three_ranks_of_theirs_resume_here(ranks, tmp_path, world):
    """Must show 3: rows, momentum, backbone and its momentum equal; training goes on."""
    given = arcface_files.write_checkpoints(tmp_path / "old", world=3)
    config = arcface_files.write_config(tmp_path / "configs")
    run = tmp_path / "run"
    made = convert_classifier(tmp_path / "old", run, config_file=config, overrides=HERE)
    assert (made.num_classes, made.files, made.step) == (23, 3, 14)
    assert made.carried == ("momentum",)
    answers = ranks.run(resumed, world, folder=run, steps="all")
    assert_same(answers, given, {"momentum_buffer": "momentum"})
    assert {(kept["step"], kept["samples"]) for kept in answers} == {(14, 14 * 12)}
    seen = losses(run)
    assert len(seen) == 28 - 14  # 4 epochs of 92 // 12 iterations
    assert all(math.isfinite(loss) for loss in seen)


def test_an_objective_whose_scale_depends_on_the_classes(tmp_path):
    """AdaCos starts at sqrt(2) ln(C - 1) here too."""
    arcface_files.write_checkpoints(tmp_path / "old", world=3)
    config = arcface_files.write_config(tmp_path / "configs")
    overrides = (*HERE, "head.objective=adacos")
    convert_classifier(tmp_path / "old", tmp_path / "run", config_file=config, overrides=overrides)
    trainer = Trainer(load(tmp_path / "run" / "config.yaml"), Comm())
    trainer.log.close()
    state = trainer.head.state_dict()["objective_state"]
    assert state.tolist() == pytest.approx([math.sqrt(2.0) * math.log(22)], rel=1e-12)


def test_adamw_rows_and_their_age(ranks, tmp_path):
    given = arcface_files.write_checkpoints(
        tmp_path / "old", world=2, kind="adamw", steps=3, iterations=3
    )
    text = arcface_files.CONFIG + 'config.optimizer = "adamw"\n'
    config = arcface_files.write_config(tmp_path / "configs", text)
    run = tmp_path / "run"
    few = (*HERE, "train.steps=5", "train.schedule.warmup=0", "train.batch_size=6")
    convert_classifier(tmp_path / "old", run, config_file=config, world=2, overrides=few)
    answers = ranks.run(resumed, 3, folder=run, steps="all")
    names = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}
    assert_same(answers, given, names)
    assert {int(age) for kept in answers for age in kept["row_step"]} == {3}
    assert all(math.isfinite(loss) for loss in losses(run))


def test_momentum_goes_on_where_it_was(ranks, tmp_path):
    """One step with a learning rate and no gradient worth naming: rows move by their old momentum."""
    rows, of_rows, _, _ = arcface_files.write_checkpoints(tmp_path / "old", world=3)
    config = arcface_files.write_config(tmp_path / "configs")
    run = tmp_path / "run"
    quiet = ("head.objective={kind: normface, scale: 1.0e-6}", "train.schedule.kind=constant")
    numbers = ("train.steps=15", "head.optimizer.weight_decay=0", "train.optimizer.lr=0.5")
    convert_classifier(
        tmp_path / "old", run, config_file=config, overrides=(*HERE, *quiet, *numbers)
    )
    ranks.run(resumed, 2, folder=run, steps="all")
    after = ranks.run(resumed, 1, folder=run)[0]["rows"]
    factor = 0.5 * 0.9
    torch.testing.assert_close(after, rows - factor * of_rows["momentum_buffer"], atol=2e-6, rtol=0)


def test_files_of_before_2022(ranks, tmp_path):
    rows, of_rows, net, _ = arcface_files.write_checkpoints(tmp_path / "new", world=3)
    old = tmp_path / "old"
    old.mkdir()
    torch.save({f"module.{name}": value for name, value in net.items()}, old / "backbone.pth")
    for rank in range(3):
        low, high = arcface_files.shard_range(23, 3, rank)
        torch.save(rows[low:high].clone(), old / f"rank_{rank}_softmax_weight.pt")
        momentum = of_rows["momentum_buffer"][low:high].clone()
        torch.save(momentum, old / f"rank_{rank}_softmax_weight_mom.pt")
    config = arcface_files.write_config(tmp_path / "configs")
    made = convert_classifier(old, tmp_path / "run", config_file=config, overrides=HERE)
    assert (made.step, made.momenta) == (0, 0)
    assert any("begins at step 0" in note for note in made.notes)
    answers = ranks.run(resumed, 2, folder=tmp_path / "run")
    assert_same(answers, (rows, of_rows, net, {}), {"momentum_buffer": "momentum"})


def test_without_a_config_the_files_tell(tmp_path):
    arcface_files.write_checkpoints(tmp_path / "old")
    given = ("data.train=synthetic", "data.synthetic={num_classes: 23}")
    made = convert_classifier(tmp_path / "old", tmp_path / "run", overrides=given)
    config = load(tmp_path / "run" / "config.yaml")
    assert config.train.steps == 28
    assert (config.train.schedule.warmup, config.train.schedule.power) == (7.0, 1.0)
    assert config.backbone.options == {"blocks": [1, 1, 1, 1], "scale": 1}
    assert config.train.optimizer.weight_decay == 5e-4
    assert any("no --config" in note for note in made.notes)


def test_shards_that_do_not_add_up(tmp_path, capsys):
    """PEERS pain 1: the difference is named, and which files explain it."""
    old = tmp_path / "old"
    arcface_files.write_checkpoints(old, world=3)
    config = arcface_files.write_config(tmp_path / "configs")
    (old / "checkpoint_gpu_2.pt").unlink()

    def refusal(*more):
        status = main(["convert", str(old), str(tmp_path / "run"), *more])
        assert status == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    told = refusal("--config", str(config))
    assert "2 shards hold 16 classes, the data set has 23: 7 are missing" in told
    assert "these are the first 2 of 3 ranks' files" in told
    told = refusal("data.train=synthetic", "data.synthetic={num_classes: 20}")
    assert "2 shards hold 16 classes; data.train=synthetic has 20: 4 fewer" in told
    (old / "checkpoint_gpu_0.pt").unlink()
    assert "missing: ranks 0" in refusal("--config", str(config))


def test_shards_of_another_cut(tmp_path, capsys):
    old = tmp_path / "old"
    arcface_files.write_checkpoints(old, world=3)
    file = torch.load(old / "checkpoint_gpu_0.pt", weights_only=True)
    file["state_dict_softmax_fc"]["weight"] = torch.ones(3, 16)
    torch.save(file, old / "checkpoint_gpu_0.pt")
    assert main(["convert", str(old), str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert (
        "shards of [3, 8, 7] classes; insightface cuts 18 classes over 3 ranks into [6, 6, 6]"
        in told
    )


def test_other_mistakes(tmp_path, capsys):
    old = tmp_path / "old"
    arcface_files.write_checkpoints(old, world=2)
    text = arcface_files.CONFIG.replace('"mbf"', '"r50"')
    config = arcface_files.write_config(tmp_path / "configs", text)
    run = str(tmp_path / "run")

    def refusal(*more):
        assert main(["convert", str(old), run, *more]) == 2
        return capsys.readouterr().err

    assert "backbone.name: iresnet50; the tensors are those of mobilefacenet" in refusal(
        "--config", str(config)
    )
    assert "train.optimizer.kind: adamw; the files hold the state of sgd" in refusal(
        "train.optimizer.kind=adamw"
    )
    assert "data.image_size: [32, 32]; allowed: [16, 16]" in refusal("data.image_size=[32, 32]")
    file = torch.load(old / "checkpoint_gpu_1.pt", weights_only=True)
    torch.save({**file, "global_step": 3}, old / "checkpoint_gpu_1.pt")
    assert "files of different steps: global_step is [14, 3]" in refusal()
    (tmp_path / "run").mkdir()
    torch.save(file, old / "checkpoint_gpu_1.pt")
    assert "exists already" in refusal("data.train=synthetic", "data.synthetic={num_classes: 23}")


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_wants_to_run_code(tmp_path, capsys):
    torch.save({"epoch": Evil()}, tmp_path / "checkpoint_gpu_0.pt")
    with pytest.raises(ValueError, match="no file of tensors and plain values"):
        read_classifier(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "checkpoint_gpu_0.pt").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="no file of tensors and plain values"):
        read_classifier(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("state_dict_softmax_fc", [1], "holds no state_dict_softmax_fc with a tensor weight"),
        ("state_dict_softmax_fc", {"weight": torch.ones(3)}, "rank 0: rows of shape"),
        ("state_optimizer", [1], "state_optimizer is no state"),
        ("state_optimizer", {"param_groups": [{"params": [[]]}], "state": {}}, "is no state"),
        ("global_step", "x", "global_step is 'x'"),
        ("state_dict_backbone", {"a": 1}, "holds no state dict of a network"),
    ],
)
def test_files_of_another_form(tmp_path, capsys, field, value, message):
    old = tmp_path / "old"
    arcface_files.write_checkpoints(old, world=1)
    file = torch.load(old / "checkpoint_gpu_0.pt", weights_only=True)
    torch.save({**file, field: value}, old / "checkpoint_gpu_0.pt")
    assert main(["convert", str(old), str(tmp_path / "run"), "data.train=synthetic"]) == 2
    assert message in capsys.readouterr().err
