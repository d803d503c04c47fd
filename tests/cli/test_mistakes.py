"""A user's mistake is status 2 and one line that names it; never a traceback."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile

import pytest
from PIL import Image

from mpsoftmax.cli import main
from mpsoftmax.cli.train import next_command
from mpsoftmax.config import load


def ran(capsys, *words):
    """(status, what was written to the error stream)."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as error:
        status = error.code
    return status, capsys.readouterr().err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with good and bad things, as the working folder."""
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "faces" / label).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (16, 16), (k * 80, 9, 9)).save(tmp_path / "faces" / label / f"{k}.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts/x").mkdir(parents=True)
    (tmp_path / "texts/x/readme.md").write_text("no image")
    for k, label in enumerate("xyz"):
        (tmp_path / "broken" / label).mkdir(parents=True)
        (tmp_path / f"broken/{label}/{k}.jpg").write_bytes(b"not an image")
    (tmp_path / "one").mkdir()
    (tmp_path / "one/people").symlink_to(tmp_path / "faces/a")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "text.tar").write_text("this is no tar, whatever its name says" * 30)
    for name, packer in (("gz", gzip), ("bz2", bz2), ("xz", lzma)):
        (tmp_path / f"{name}.tar").write_bytes(packer.compress(b"as good as a tar"))
    (tmp_path / "faces.tar.gz").write_bytes(gzip.compress(b"as good as a tar"))
    (tmp_path / "recs").mkdir()
    (tmp_path / "recs/good.rec").write_bytes(b"")
    (tmp_path / "model.pt").write_bytes(b"")
    with tarfile.open(tmp_path / "real.tar", "w") as archive:
        archive.add(tmp_path / "faces/a/0.png", "a/0.png")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("")
    (tmp_path / "all 1.bin").write_bytes(b"\x80\x04")
    (tmp_path / "empty.parquet").write_text("[")
    (tmp_path / "zeros.parquet").write_bytes(b"\0" * 100)
    (tmp_path / "good.yaml").write_text(
        "data: {train: faces, image_size: [16, 16], workers: 0}\ntrain: {steps: 1, batch_size: 2}\n"
        "backbone: {name: small, embedding_dim: 8}\ntrack: {wandb: disabled}\n"
    )
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "bad.yaml").write_text("train: {steps: 1\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "twice.yaml").write_text("train: {steps: 1, steps: 2}\n")
    (tmp_path / "pairs.txt").write_text("faces/a/0.png faces/a/9.png 1\n")
    (tmp_path / "few.csv").write_text(
        "same,file1,file2\n1,faces/a/0.png,faces/a/1.png\n0,faces/a/0.png,faces/b/1.png\n"
    )
    (tmp_path / "file").write_text("")
    return tmp_path


GOOD = ("train", "good.yaml")
CASES = [
    ((), "arguments are required: COMMAND"),
    (("trian",), "'trian'; did you mean 'train'"),
    (("bench",), "arguments are required: WHAT"),
    (("bench", "laoder"), "'laoder'; did you mean 'loader'"),
    (("train",), "neither CONFIG nor data.train=PATH is given"),
    (("train", "god.yaml"), r"god\.yaml: cannot be read: No such file .*did you mean 'good\.yaml'"),
    (
        ("train", "faces"),
        r"config faces: cannot be read: Is a directory; did you mean data\.train=faces\?",
    ),
    (("train", "run"), r"config run: .*; did you mean run/config\.yaml\?"),
    (("train", "real.tar"), r"config real\.tar: not .*; did you mean data\.train=real\.tar\?"),
    (
        ("train", "text.tar"),
        r"config text\.tar: holds a str; .*; did you mean data\.train=text\.tar\?",
    ),
    (
        ("plan", "empty.parquet"),
        r"config empty\.parquet: .*did you mean data\.train=empty\.parquet\?",
    ),
    (
        ("plan", "all 1.bin"),
        r"config all 1\.bin: not UTF-8 .*; did you mean 'data\.eval=all 1\.bin'\?",
    ),
    (("train", "list.yaml"), r"config list\.yaml: holds a list; allowed: a mapping"),
    (("train", "bad.yaml"), r"config bad\.yaml: not valid YAML"),
    (("train", "binary.yaml"), r"config binary\.yaml: not UTF-8 text"),
    (("train", "twice.yaml"), "key steps is given twice"),
    ((*GOOD, "train.stps=2"), r"train\.stps: unknown key; did you mean 'steps'"),
    ((*GOOD, "train.steps=many"), r"train\.steps: 'many'; allowed: a whole number"),
    ((*GOOD, "train.steps"), r"unrecognized arguments|override 'train\.steps'"),
    ((*GOOD, "train.steps=-1"), r"train\.steps: -1; allowed: at least 1"),
    ((*GOOD, "data.order=clases"), r"data\.order: 'clases'; .*did you mean 'classes'"),
    ((*GOOD, "head.objective=arcfac"), "'arcfac'; did you mean 'arcface'"),
    ((*GOOD, "head.candidates=unifrom"), "'unifrom'; did you mean 'uniform'"),
    ((*GOOD, "backbone.name=iresnet51"), "unknown backbone 'iresnet51', did you mean"),
    ((*GOOD, "backbone.name=nowhere.module:Net"), "nowhere"),
    ((*GOOD, "data.augment=fase"), "'fase'; did you mean 'face'"),
    ((*GOOD, "data.augment=[{kind: filp}]"), "filp"),
    ((*GOOD, "--nprc", "2"), "unrecognized arguments: --nprc.*; did you mean '--nproc'"),
    ((*GOOD, "--nproc", "two"), "--nproc: invalid int value: 'two'"),
    ((*GOOD, "--nproc", "0"), "--nproc: 0; allowed: at least 1"),
    ((*GOOD, "data.train=fases"), r"data\.train: .*'fases': no such file .*did you mean 'faces'"),
    ((*GOOD, "data.train=empty"), "empty: no images found in class folders"),
    ((*GOOD, "data.train=texts"), "no images found .*not an image by its suffix"),
    ((*GOOD, "data.train=empty.tar"), r"empty\.tar: no images found"),
    ((*GOOD, "data.train=text.tar"), r"text\.tar: tar header"),
    ((*GOOD, "data.train=gz.tar"), r"gz\.tar: compressed with gzip; allowed: an uncompressed tar"),
    ((*GOOD, "data.train=bz2.tar"), r"bz2\.tar: compressed with bzip2; allowed: an uncompressed"),
    ((*GOOD, "data.train=xz.tar"), r"xz\.tar: compressed with xz; allowed: an uncompressed tar"),
    ((*GOOD, "data.train=faces.tar.gz"), r"'faces\.tar\.gz': a compressed tar; allowed: an uncomp"),
    ((*GOOD, "data.train=recs"), r"'recs': neither .* in it; did you mean 'recs/good\.rec'\?"),
    ((*GOOD, "data.train=broken"), "corrupt image .*broken/[xyz]/"),
    ((*GOOD, "data.train=one"), r"data\.train: 1 class \('people'\); allowed: at least 2"),
    (("train", "data.train=one"), r"data\.train: 1 class \('people'\); allowed: at least 2"),
    (
        (*GOOD, "train.schedule.warmup=3"),
        r"train\.schedule\.warmup: 3; allowed: below the number of steps, 1",
    ),
    ((*GOOD, "head.objective.margn=3"), r"head\.objective\.margn: unknown key; did you mean 'marg"),
    ((*GOOD, "data.train=zeros.parquet"), r"zeros\.parquet: Parquet file expected"),
    ((*GOOD, "data.train=good.yaml"), r"'good\.yaml': unknown format"),
    ((*GOOD, "data.train=[faces, nowhere]"), r"data\.train\[1\]: .*'nowhere': no such file"),
    ((*GOOD, "data.train=file/x"), "'file/x': no such file or folder"),
    ((*GOOD, "data.train=shard-{0..3}.tar"), r"no such file shard-0\.tar"),
    (
        (*GOOD, "data.eval=[pears.txt]"),
        r"data\.eval: 'pears\.txt': no such file; did you mean 'pair",
    ),
    ((*GOOD, "data.eval=[pairs.txt]"), r"pairs\.txt:1: no file 'faces/a/9\.png'"),
    ((*GOOD, "data.eval=[empty.bin]"), r"empty\.bin"),
    (
        (*GOOD, "data.eval=[few.csv]"),
        r"data\.eval: few\.csv: 2 pairs, 1 of them of the same class; allowed: at least 10, of both",
    ),
    ((*GOOD, "data.eval=[faces]"), r"data\.eval: 'faces': a labelled set, and .* needs pairs"),
    ((*GOOD, "data.eval=[empty.tar]"), r"data\.eval: 'empty\.tar': a labelled set"),
    ((*GOOD, "run.dir=file"), r"run\.dir: file cannot be created: File exists"),
    ((*GOOD, "run.dir=file/run"), r"run\.dir: file/run cannot be created: Not a directory"),
    ((*GOOD, "--picture", "x.png"), r"--picture: 'x\.png'; allowed with --dry-run"),
    ((*GOOD, "--dry-run", "--picture", "file/x.png"), r"'file/x\.png'; allowed: a file in a fold"),
    (
        (*GOOD, "--dry-run", "run.dir=file"),
        r"file/first-batch\.png: cannot be written: File exists",
    ),
    (("train", "data.train=fases"), "'fases': no such file .*did you mean 'faces'"),
    (("train", "data.train=broken"), "none of 3 images looked at is an image"),
    (("train", "data.trian=faces"), r"data\.trian: unknown key; did you mean 'train'"),
    (("train", "data.train=faces", "--dryrun"), "--dryrun; did you mean '--dry-run'"),
    (
        ("plan", "train.steps=2"),
        r"neither CONFIG nor data\.train=PATH is given; allowed: a YAML file",
    ),
    (("plan", "data.train=one"), r"data\.train: 1 class \('people'\)"),
    (("plan", "good.yaml", "--gpu", "H100-80G"), "--gpu: 'H100-80G'; did you mean 'H100-80GB'"),
    (("plan", "good.yaml", "--gpus", "0"), "--gpus: 0"),
    (("plan", "good.yaml", "--classes", "1e6"), "--classes"),
    (("plan", "good.yaml", "--json", "file/x"), "--json: 'file/x'; allowed: a file in a folder"),
    (("inspect",), "arguments are required: path"),
    (("inspect", "fases"), "'fases': no such file .*did you mean 'faces'"),
    (("inspect", "empty"), "no images found"),
    (("inspect", "emty.bin"), r"emty\.bin: no such file; did you mean 'empty\.bin'"),
    (("inspect", "faces", "--sample", "-2"), "sample is -2"),
    (("inspect", "faces", "--reader", "dialect"), "--reader: 'dialect'; allowed: KEY=VALUE"),
    (("inspect", "faces", "--reader", "dialect=csv"), "dialect='csv' is no option of this format"),
    (("inspect", "glyphs", "--under", "x"), "under='x' is no option of it"),
    (("inspect", "faces", "--reader", "check=false"), "--reader: check=False is no option"),
    ((*GOOD, "data.reader={check: false}"), r"data\.reader: check=False is no option"),
    (("inspect", "zeros.parquet", "--reader", "cache_groups=a"), "cache_groups='a'; allowed: int"),
    (("inspect", "empty.tar", "--reader", "label_key=[1]"), r"label_key=\[1\]; allowed: str"),
    (("convert", "faces"), "arguments are required: destination"),
    (("convert", "faces", "x.zip"), r"target 'x\.zip': expected \*\.tar"),
    (("convert", "faces", "file"), "file exists already"),
    (("convert", "faces", "file/x.tar"), "file.*: (File exists|Not a directory)"),
    (("convert", "faces", "x.rec", "--style", "im2re"), "'im2re'; did you mean 'im2rec'"),
    (("evaluate", "faces", "--data", "pairs.txt"), "faces: neither a run folder"),
    (("evaluate", "fases", "--data", "x"), "fases: no such folder; did you mean 'faces'"),
    (
        ("evaluate", "model.pt", "--data", "x"),
        "nor a checkpoint; for arcface_torch's .pt/.pth: mpsoftmax convert model.pt MODEL",
    ),
    (("evaluate", "faces"), "faces: neither a run folder"),
    (
        ("evaluate", "faces", "--unknown", "1"),
        "--unknown: '1'; allowed: a number of at least 0 and",
    ),
    (
        ("evaluate", "faces", "--bootstrap", "-1"),
        "--bootstrap: '-1'; allowed: a whole number of at",
    ),
    (("clean", "--apply", "file", "faces", "x.view.json", "--mirror"), "--mirror: True; not used"),
    (("doctor", "god.yaml"), r"cannot be read: No such file .*did you mean 'good\.yaml'"),
    (("doctor", "--timeout-s", "0"), r"--timeout-s: 0\.0; allowed: a positive number"),
    (("bench", "loader", "--augment", "fase"), "--augment: 'fase'; did you mean 'face'"),
    (("bench", "loader", "--data", "nowhere.tar"), r"'nowhere\.tar': no such file"),
    (("completion", "bsh"), "'bsh'; did you mean 'bash'"),
]


@pytest.mark.parametrize(("words", "message"), CASES, ids=[" ".join(c[0])[:60] for c in CASES])
def test_a_mistake_is_one_line_and_status_2(capsys, here, words, message):
    status, said = ran(capsys, *words)
    assert status == 2, said
    assert re.search(message, said), said
    assert said.startswith("mpsoftmax")
    assert ": error: " in said
    assert said.count("\n") == 1, said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize(
    ("words", "mode", "message"),
    [
        (("train", "good.yaml"), 0o000, "good.yaml: cannot be read: Permission denied"),
        (("inspect", "text.tar"), 0o000, "text.tar"),
    ],
)
def test_permission_denied(capsys, here, words, mode, message):
    (here / words[1]).chmod(mode)
    status, said = ran(capsys, *words)
    assert (status, said.count("\n")) == (2, 1)
    assert message in said


def test_permission_denied_is_a_line_for_whoever_runs_the_tests(capsys, here, monkeypatch):
    """The system's refusal stands in for a file mode, which does not bind root."""

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    status, said = ran(capsys, "inspect", "text.tar")
    assert (status, said.count("\n")) == (2, 1)
    assert "text.tar: cannot be read: Permission denied" in said


def test_an_error_of_ours_keeps_its_traceback(here, monkeypatch):
    """Only what has a path of the user's is a line: the rest is for a bug report."""
    monkeypatch.setattr("mpsoftmax.data.inspect.inspect", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "faces"])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpsoftmax.data.inspect.inspect", full)
    with pytest.raises(OSError, match="No space"):
        main(["inspect", "faces"])


def test_interrupted(capsys, here, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpsoftmax.data.inspect.inspect", interrupt)
    assert ran(capsys, "inspect", "faces") == (130, "mpsoftmax inspect: interrupted\n")


def test_overrides_may_come_first_and_a_file_may_have_an_equals_sign(capsys, here):
    (here / "a=b.yaml").write_text((here / "good.yaml").read_text())
    assert main(["train", "train.steps=7", "good.yaml", "--print"]) == 2
    capsys.readouterr()
    assert main(["train", "a=b.yaml", "train.steps=7", "--print"]) == 0
    assert "steps: 7" in io.StringIO(capsys.readouterr().out).read()


def test_next_commands_are_quoted(capsys, here):
    (here / "faces").rename(here / "my faces")
    assert main(["inspect", "my faces"]) == 0
    assert "next: mpsoftmax train 'data.train=my faces' --dry-run" in capsys.readouterr().out
    config = load(None, ["train.steps=1", "data.eval=[a b.bin]"])
    assert next_command(here / "a run", config) == (
        f"mpsoftmax evaluate '{here}/a run' --data 'a b.bin'"
    )
