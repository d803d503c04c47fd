"""Configs of arcface_torch: read, never run; every key becomes something or is said to be lost."""

import re

import arcface_files
import pytest

from mpsoftmax.cli import main
from mpsoftmax.config import load
from mpsoftmax.migrate.config_file import read_config_file
from mpsoftmax.migrate.configs import translate

WEBFACE = """from easydict import EasyDict as edict
# an example of the published ones
config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r100"
config.resume = False
config.output = None
config.sample_rate = 0.2
config.fp16 = True
config.batch_size = 128
config.lr = 0.4
config.rec = "/nowhere/WebFace42M"
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.val_targets = ['lfw', 'cfp_fp', "agedb_30"]
"""


def converted(tmp_path, capsys, text, *more):
    source = arcface_files.write_config(tmp_path / "configs", text)
    out = tmp_path / "ours.yaml"
    out.unlink(missing_ok=True)
    status = main(["convert", str(source), str(out), *more])
    told = capsys.readouterr()
    return status, told, load(out) if status == 0 else None


def test_a_published_config(tmp_path, capsys):
    _, told, config = converted(tmp_path, capsys, WEBFACE, "--world", "32")
    assert config.head.objective == {"kind": "cosface", "scale": 64.0, "margin": 0.4}
    assert (config.backbone.name, config.backbone.embedding_dim) == ("iresnet100", 512)
    assert config.head.candidates == {"kind": "uniform", "rate": 0.2}
    assert config.head.untouched == "lazy"  # V2 moves rows that are left out
    assert config.train.batch_size == 128 * 32
    assert config.train.steps == 42474557 // 4096 * 20 == 207380
    assert config.train.schedule.warmup == 42474557 // 4096 * 2
    assert (config.train.schedule.kind, config.train.schedule.power) == ("polynomial", 1.0)
    assert config.train.optimizer.lr == 0.4
    assert config.train.optimizer.weight_decay == 5e-4
    assert config.train.precision == "fp16"
    assert config.train.clip_norm == 5.0
    assert config.data.train == "/nowhere/WebFace42M/train.rec"
    assert config.data.eval == tuple(
        f"/nowhere/WebFace42M/{name}.bin" for name in ("lfw", "cfp_fp", "agedb_30")
    )
    assert config.run.dir == "work_dirs/small_mbf"
    assert config.train.seed == 2048
    assert "128 x 32 GPUs" in told.out
    lost = told.out.partition("NO COUNTERPART")[2]
    assert "wandb_key" in lost
    assert "0123456789" not in told.out + (tmp_path / "ours.yaml").read_text()


def test_every_key_of_base_is_accounted_for(tmp_path):
    path = arcface_files.write_config(tmp_path)
    keys = {
        line.split(".")[1].split(" =")[0]
        for line in (arcface_files.BASE + arcface_files.CONFIG).splitlines()
        if line.startswith("config.")
    }
    made = translate(read_config_file(path), 1)
    assert keys == {row.key for row in made.rows if not row.key.startswith("(")}
    assert all(row.becomes or row.note for row in made.rows)


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ("(1.0, 0.5, 0.0)", {"kind": "arcface", "scale": 64.0, "margin": 0.5}),
        ("(1.0, 0.0, 0.35)", {"kind": "cosface", "scale": 64.0, "margin": 0.35}),
        ("(1.0, 0.5, 0.35)", {"kind": "cosface", "scale": 64.0, "margin": 0.35}),
    ],
)
def test_margins(tmp_path, capsys, margins, expected):
    text = arcface_files.CONFIG.replace("(1.0, 0.5, 0.0)", margins)
    _, told, config = converted(tmp_path, capsys, text)
    assert config.head.objective == expected
    assert ("do nothing there" in told.out) == (margins == "(1.0, 0.5, 0.35)")


def test_accumulation_counts_steps(tmp_path, capsys):
    """92 images: 11 iterations of 2 x 4 an epoch, 4 epochs, 2 iterations a step."""
    text = arcface_files.CONFIG + "config.gradient_acc = 2\nconfig.verbose = 30\n"
    _, _, config = converted(tmp_path, capsys, text, "--world", "2")
    assert (config.train.batch_size, config.train.accumulation) == (16, 2)
    assert config.train.steps == 44 // 2
    assert config.train.schedule.warmup == 11 // 2
    assert config.train.eval_every == 15


def test_further_keys(tmp_path, capsys):
    more = """config.optimizer = "adamw"
config.weight_decay = 0.1
config.interclass_filtering_threshold = 0.4
config.sample_rate = 0.3
config.save_all_states = True
config.using_wandb = True
config.save_artifacts = True
config.suffix_run_name = f"{config.network}-{config.num_epoch}"
config.dali = True
config.my_own = [1, 2 + 3]
"""
    _, told, config = converted(tmp_path, capsys, arcface_files.CONFIG + more)
    assert config.train.optimizer.kind == "adamw"
    assert config.head.optimizer == {"kind": "adamw", "weight_decay": 0.1}
    assert config.head.negatives == {"kind": "noise_filter", "threshold": 0.4}
    assert config.head.untouched == "frozen"
    assert config.train.checkpoint_every == 92 // 4
    assert (config.track.wandb, config.track.artifacts) == ("online", "backbone")
    assert config.track.name == "mbf-4"
    lost = told.out.partition("NO COUNTERPART")[2]
    assert "dali = true" in lost
    assert "my_own = [1, 5]" in lost


def test_without_base_published_values_are_said(tmp_path, capsys):
    path = tmp_path / "alone.py"
    path.write_text(WEBFACE)
    assert main(["convert", str(path), str(tmp_path / "ours.yaml")]) == 0
    assert "no base.py beside the config" in capsys.readouterr().out
    assert load(tmp_path / "ours.yaml").train.optimizer.kind == "sgd"


def test_data_that_is_here_is_looked_at(tmp_path, capsys):
    rec = tmp_path / "faces"
    (rec / "one").mkdir(parents=True)
    (rec / "lfw.bin").write_bytes(b"")
    text = WEBFACE.replace("/nowhere/WebFace42M", str(rec))
    _, told, config = converted(tmp_path, capsys, text)
    assert config.data.train == str(rec)  # folders of images
    assert config.data.eval == (str(rec / "lfw.bin"),)
    assert "left out" in told.out
    assert "cfp_fp.bin, agedb_30.bin" in told.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import os; os.system('touch PWNED')", "is read, never run"),
        ("config.output = __import__('os').getcwd()", "is read, never run"),
        ("config.output = open('PWNED', 'w')", "is read, never run"),
        ("for x in []: pass", "is read, never run"),
        ("config.lr = 9 ** 9 ** 9", "is read, never run"),
        ("config.output = 'x' * 10**9", "is read, never run"),
        ("config.lr = 1 / 0", "division by zero"),
        ("config.lr = config.nothing", "'config.nothing' is not assigned before"),
        ("config.output = f'{1:>1000000000}'", "is read, never run"),
        (
            "\n".join(["a = [1, 1]", *["a = [a, a]"] * 60, "config.val_targets = a"]),
            "a value of more than 65536 parts",
        ),
        ("\n".join(["a = 'xy'", *["a = f'{a}{a}'"] * 60]), "a value of more than 65536 parts"),
        (
            "config.lr = " + "1 + " * 900 + "1",
            "nested too deeply|is read, never run|cannot be read",
        ),
        ("config.network = 'r5O'", "did you mean"),
        ("config.network = 'r2060'", "no counterpart"),
        ("config.batch_size = 'many'", "batch_size: 'many'; allowed: a number"),
        ("config.gradient_acc = 0", "gradient_acc: 0; allowed: a whole number"),
        ("config.margin_list = (2.0, 0.5, 0.0)", "allowed: \\(1, m2, 0\\)"),
        ("config.lr = (", "cannot be read as Python"),
        ("config.sample_rate = 0", "positives alone"),
    ],
)
def test_hostile_or_wrong_lines(tmp_path, capsys, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    status, told, _ = converted(tmp_path, capsys, arcface_files.CONFIG + line + "\n")
    assert status == 2
    assert re.search(message, told.err), told.err
    assert told.err.count("\n") == 1
    assert not (tmp_path / "PWNED").exists()


def test_a_module_that_is_no_config(tmp_path):
    (tmp_path / "x.py").write_text("a = 1\n")
    with pytest.raises(ValueError, match="makes no config"):
        read_config_file(tmp_path / "x.py")
    (tmp_path / "deep.py").write_text("config.x = " + "(" * 5000)
    with pytest.raises(ValueError, match="cannot be read as Python"):
        read_config_file(tmp_path / "deep.py")
    (tmp_path / "sum.py").write_text("config = edict()\nconfig.x = " + "-" * 3000 + "1")
    with pytest.raises(ValueError, match="config"):
        read_config_file(tmp_path / "sum.py")


def test_arguments_of_other_sources_are_refused(tmp_path, capsys):
    path = arcface_files.write_config(tmp_path)
    assert main(["convert", str(path), str(tmp_path / "x.yaml"), "--config", "y"]) == 2
    assert "--config: y; not used for a config" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "x.yaml"), "--number-classes"]) == 2
    assert "--number-classes: True; not used for a config" in capsys.readouterr().err
    assert main(["convert", "synthetic", str(tmp_path / "x.arrow"), "--world", "2"]) == 2
    assert "--world: 2; not used for a data set" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "x.json")]) == 2
    assert "a file named .yaml" in capsys.readouterr().err
