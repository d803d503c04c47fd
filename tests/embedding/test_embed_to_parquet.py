"""`mpsoftmax embed`: interrupted or not, at any number of ranks, the same file; the API beside it."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_runs import settings

from mpsoftmax.cli import main
from mpsoftmax.comm import Comm
from mpsoftmax.data.convert import convert
from mpsoftmax.data.decode import decode
from mpsoftmax.data.pairs import PairSet, write_bin
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.embedding import embed_to_parquet, open_to_embed
from mpsoftmax.models import open_model
from mpsoftmax.train.loop import Trainer


def trained(folder):
    Trainer(settings(folder, "train.steps=3"), Comm()).run()


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    ranks.run(trained, 1, folder=folder)
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """45 images of 9 classes in a folder per class."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    images = Synthetic(num_classes=9, images_per_class=5, size=(16, 16), seed=3)
    convert(images, folder, number_classes=True)
    return folder


def embed(run, data, out, **options):
    comm = Comm()
    model = open_model(run, comm=comm)
    done = embed_to_parquet(
        model, open_to_embed(data), out, part_images=7, batch_size=4, comm=comm, **options
    )
    return done.num_resumed


KILLED = """
import os, signal, sys
from mpsoftmax.embedding import embed_to_parquet, open_to_embed
from mpsoftmax.models import open_model
def kill(done, total):
    if done >= 20:
        os.kill(os.getpid(), signal.SIGKILL)
run, data, out = sys.argv[1:]
model, images = open_model(run), open_to_embed(data)
embed_to_parquet(model, images, out, mirror=True, part_images=7, batch_size=4, progress=kill)
"""


@pytest.mark.timeout(300)  # three processes that are started and one that is killed
def test_killed_in_the_middle_and_at_one_to_three_ranks_the_file_is_the_same(
    ranks, run, faces, tmp_path
):
    for world in (1, 2, 3):
        out = tmp_path / f"{world}.parquet"
        ranks.run(embed, world, run=run, data=faces, out=out, mirror=True)
    killed = tmp_path / "killed.parquet"
    command = [sys.executable, "-c", KILLED, str(run), str(faces), str(killed)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -9
    assert not killed.exists()
    parts = tmp_path / "killed.parquet.parts"
    done = {path: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    assert len(done) == 3
    assert ranks.run(embed, 2, run=run, data=faces, out=killed, mirror=True) == [21, 21]
    assert not parts.exists()
    whole = pq.read_table(tmp_path / "1.parquet")
    assert whole.num_rows == 45
    for name in ("2", "3", "killed"):
        other = pq.read_table(tmp_path / f"{name}.parquet")
        assert other.equals(whole)
        assert other.schema.metadata == whole.schema.metadata
    assert not list(tmp_path.glob("*.skipped.json"))


def test_rows_are_the_networks_own(run, faces, tmp_path):
    """Against the backbone fed image by image, by hand."""
    out = tmp_path / "e.parquet"
    embed(run, faces, out, mirror=True)
    table = pq.read_table(out)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert table.schema.field("label").type == pa.int64()
    model, rows = open_model(run), table.to_pylist()
    files = sorted(path for path in faces.rglob("*.*") if path.is_file())
    assert [row["name"] for row in rows] == [str(path.relative_to(faces)) for path in files]
    assert [row["label"] for row in rows] == [k // 5 for k in range(45)]
    assert [row["class_name"] for row in rows] == [path.parent.name for path in files]
    for row, path in zip(rows[::11], files[::11], strict=True):
        pixels = torch.from_numpy(np.array(decode(path.read_bytes(), (16, 16)))).permute(2, 0, 1)
        x = ((pixels.float() - 127.5) / 127.5)[None]
        with torch.no_grad():
            raw = (model.net(x) + model.net(x.flip(3)))[0] / 2
        assert row["norm"] == pytest.approx(float(raw.norm()), rel=1e-5)
        torch.testing.assert_close(
            torch.tensor(row["embedding"]), raw / raw.norm(), rtol=0, atol=1e-5
        )
    said = json.loads(table.schema.metadata[b"mpsoftmax"])
    assert (said["step"], said["mirror"], said["num_images"]) == (3, True, 45)
    assert said["preprocessing"]["image_size"] == [16, 16]
    assert said["source"].endswith("step-3")


def test_another_job_does_not_go_on(run, faces, tmp_path):
    out = tmp_path / "e.parquet"

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(run, faces, out, mirror=True, progress=interrupt)
    with pytest.raises(ValueError, match="begun with mirror True, now it is False"):
        embed(run, faces, out, mirror=False)
    embed(run, faces, out, mirror=True)
    with pytest.raises(ValueError, match="exists already"):
        embed(run, faces, out, mirror=True)


def test_where_nothing_can_be_written(run, faces):
    """Below /proc nobody may make a folder, not even root."""
    with pytest.raises(
        ValueError, match=r"^/proc/e\.parquet: cannot be written: [^\[]*e\.parquet\.parts; al"
    ):
        embed(run, faces, Path("/proc/e.parquet"))


def fails(run, data, out):
    with pytest.raises(ValueError, match=r"two-.*jpg") as error:
        embed(run, data, out)
    return str(error.value)


def test_images_that_cannot_be_read(ranks, run, tmp_path):
    """An error that names the image on every rank; or skipped and listed."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for name in ("one", "three", "two-a", "two-b", "zz"):
        Image.new("RGB", (20, 20), (10, 200, len(name))).save(folder / f"{name}.jpg")
    for name in ("two-a", "two-b"):
        (folder / f"{name}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    said = ranks.run(fails, 2, run=run, data=folder, out=tmp_path / "stop.parquet")
    assert "two-a.jpg" in said[0]
    assert not (tmp_path / "stop.parquet").exists()
    out = tmp_path / "skip.parquet"
    embed(run, folder, out, on_error="skip")
    table = pq.read_table(out)
    names = [Path(name).name for name in table["name"].to_pylist()]
    assert names == ["one.jpg", "three.jpg", "zz.jpg"]
    assert table["label"].to_pylist() == [None] * 3  # no class folders: nothing is known
    listed = json.loads((tmp_path / "skip.parquet.skipped.json").read_text())
    assert [Path(one["name"]).name for one in listed] == ["two-a.jpg", "two-b.jpg"]
    assert all("Pillow" in one["problem"] for one in listed)
    assert json.loads(table.schema.metadata[b"mpsoftmax"])["num_skipped"] == 2


def test_what_can_be_embedded(faces, tmp_path):
    """Loose images beside class folders, in folders and tars; pairs, each image once."""
    mixed = tmp_path / "mixed"
    (mixed / "a").mkdir(parents=True)
    for path in ("x.png", "a/y.png"):
        Image.new("RGB", (4, 4)).save(mixed / path)
    with tarfile.open(tmp_path / "mixed.tar", "w") as archive:
        archive.add(mixed, ".", filter=None)
    for source in (mixed, tmp_path / "mixed.tar"):
        images = open_to_embed(source)
        assert images.labels.tolist() == [-1, 0]
        assert list(images.class_names) == ["a"]
    synthetic = Synthetic(num_classes=3, images_per_class=2, size=(8, 8))
    pairs = PairSet(synthetic, np.array([[0, 1], [1, 4]]), np.array([True, False]))
    write_bin(tmp_path / "p.bin", pairs)
    assert len(open_to_embed(tmp_path / "p.bin")) == 3
    files = sorted(str(path.relative_to(faces)) for path in faces.rglob("*.*") if path.is_file())
    (tmp_path / "list.txt").write_text(f"{files[0]} {files[1]} 1\n{files[0]} {files[9]} 0\n")
    assert len(open_to_embed(f"{tmp_path / 'list.txt'}@{faces}")) == 3


def test_shards_and_lists_with_labels_keep_them(faces, tmp_path):
    """What `open_images` reads as WebDataset, Parquet shards or a list is embedded with its labels."""
    tar, shards = tmp_path / "shard-000.tar", tmp_path / "shards"
    files = sorted(path for path in faces.rglob("*.*") if path.is_file())
    with tarfile.open(tar, "w") as archive:
        for number, path in enumerate(files):
            label = tmp_path / "label.cls"
            label.write_text(str(int(path.parent.name)))
            archive.add(path, f"{number:04d}{path.suffix}")
            archive.add(label, f"{number:04d}.cls")
    shards.mkdir()
    convert(faces, shards / "train-00000-of-00001.parquet")
    lines = [f"{path.relative_to(faces)}\t{int(path.parent.name)}" for path in files]
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    expected = sorted(int(path.parent.name) for path in files)
    for source in (tar, shards, f"{tmp_path / 'labels.txt'}@{faces}"):
        assert sorted(open_to_embed(source).labels.tolist()) == expected
    (tmp_path / "labels.txt").write_text("nothing of either kind\n")
    with pytest.raises(ValueError, match="and as a list of pairs: "):
        open_to_embed(f"{tmp_path / 'labels.txt'}@{faces}")
    Image.new("RGB", (4, 4)).save(
        shards / "photo.png"
    )  # a folder of photos with a table among them
    assert len(open_to_embed(shards)) == 1


def test_the_api_takes_files_bytes_and_arrays(run, faces):
    files = sorted(path for path in faces.rglob("*.*") if path.is_file())[:3]
    model = open_model(run)
    by_path = model.embed(files, mirror=False)
    as_bytes = model.embed([path.read_bytes() for path in files], mirror=False)
    pixels = [np.array(Image.open(path).convert("RGB")) for path in files]
    as_arrays = model.embed(pixels, mirror=False)
    assert torch.equal(by_path, as_bytes)
    assert torch.equal(by_path, as_arrays)
    torch.testing.assert_close(by_path.norm(dim=1), torch.ones(3))
    with pytest.raises(ValueError, match=r"images\[1\] is a int"):
        model.embed([files[0], 7], mirror=False)  # type: ignore[list-item]


def test_the_command(run, faces, tmp_path, capsys):
    out = tmp_path / "c.parquet"
    assert main(["embed", str(run), str(faces), str(out), "--mirror"]) == 0
    assert "45 embeddings" in capsys.readouterr().out
    names = pq.read_table(out)["name"].to_pylist()
    assert names == sorted(str(path.relative_to(faces)) for path in faces.rglob("*.*"))
    assert main(["embed", str(run), str(faces), str(tmp_path / "c.csv")]) == 2
    assert "allowed: a name ending in .parquet" in capsys.readouterr().err


def test_a_list_of_images_a_folder_of_parquet_and_webdataset_keep_their_labels(
    run, faces, tmp_path
):
    """Each as data.train reads it, and by the command with a word to the reader."""
    files = sorted(str(path.relative_to(faces)) for path in faces.rglob("*.*") if path.is_file())
    (tmp_path / "train.txt").write_text("".join(f"{f}\t{k % 3}\n" for k, f in enumerate(files[:6])))
    spec = f"{tmp_path / 'train.txt'}@{faces}"
    assert open_to_embed(spec).labels.tolist() == [0, 1, 2, 0, 1, 2]
    (tmp_path / "hub").mkdir()
    convert(faces, tmp_path / "hub/train-00000-of-00001.parquet")
    assert len(open_to_embed(tmp_path / "hub").class_names) == len(open_to_embed(faces).class_names)
    for name, data in (("1.png", (faces / files[0]).read_bytes()), ("1.cls", b"4")):
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "web.tar", "w") as archive:
        archive.add(tmp_path / "1.png", "1.png")
        archive.add(tmp_path / "1.cls", "1.cls")
    assert open_to_embed(tmp_path / "web.tar").labels.tolist() == [4]
    out = tmp_path / "listed.parquet"
    assert main(["embed", str(run), spec, str(out), "--reader", "dialect=tab"]) == 0
    assert pq.read_table(out)["label"].to_pylist() == [0, 1, 2, 0, 1, 2]
