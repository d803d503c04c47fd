"""What a reader of the docs has lying about, all small: runs, data in every format, checkpoints of others."""

from pathlib import Path

import arcface_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ijb_folder import write_ijb
from PIL import Image
from small_pairs import write_pairs
from small_runs import train

from mpsoftmax.cli import main
from mpsoftmax.data.convert import convert
from mpsoftmax.data.synthetic import Synthetic

RUNS = ("faces", "faces_small", "older", "arcface", "cosface", "mine", "goods", "persons")


def write_reader_folder(root: Path) -> None:
    """Fill `root`."""
    for seed, name in enumerate(RUNS):
        train(root / "runs" / name, (f"train.seed={seed}", "track.report=false"))
    for name in ("lfw.bin", "pairs.bin"):
        write_pairs(root / name)
    images = Synthetic(num_classes=12, images_per_class=6, size=(16, 16), seed=3)
    for name in ("mine", "people", "test", "more", "faces", "images"):
        write_folder(root / name, images)
    for name in ("people.tar", "faces.tar"):
        convert(root / "people", root / name)
    for name in ("more.rec", "faces.rec"):
        convert(root / "people", root / name, number_classes=True)
    convert(root / "people", root / "train-00000-of-00001.parquet")
    told = str(root / "judged.json")
    assert (
        main(
            ["evaluate", str(root / "runs/faces"), "--data", str(root / "lfw.bin"), "--json", told]
        )
        == 0
    )
    (root / "photos").mkdir()
    for number in range(3):
        Image.fromarray(images.image(number)).save(root / "photos" / f"{number}.png")
    names = [f"p{label:02d}/{row % 6}.png" for row, label in enumerate(images.labels)]
    rows = [f"1,{names[k]},{names[k + 1]}" for k in range(0, 72, 2)]
    rows += [f"0,{names[k]},{names[(k + 30) % 72]}" for k in range(0, 72, 2)]
    (root / "pairs.csv").write_text("same,file1,file2\n" + "\n".join(rows) + "\n")
    listed = [f"1\t{name}\t{int(label)}" for name, label in zip(names, images.labels, strict=True)]
    (root / "train.lst").write_text("\n".join(listed) + "\n")
    vectors = np.random.default_rng(0).normal(size=(72, 8)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
    for name in ("theirs.parquet", "goods.parquet"):
        table = {"name": names, "embedding": flat, "label": images.labels}
        pq.write_table(pa.table(table), root / name)
    write_market(root / "Market-1501-v15.09.15", images)
    write_ijb(root / "IJB_release" / "IJBC")
    arcface_files.write_checkpoints(root / "old" / "arcface_torch" / "work_dir", world=3)
    arcface_files.write_config(root / "configs").rename(root / "configs" / "ms1mv3_r50.py")
    (root / "config.yaml").write_text("train: {steps: 5}\n")
    torch.save(arcface_files.net().state_dict(), root / "backbone.pth")


def write_folder(root: Path, images: Synthetic) -> None:
    """A folder a class."""
    for row, label in enumerate(images.labels):
        folder = root / f"p{label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.image(row)).save(folder / f"{row % 6}.png")


def write_market(root: Path, images: Synthetic) -> None:
    """As Market-1501 names its files."""
    for row, label in enumerate(images.labels):
        place = row % 6
        folder = root / ("query" if place == 0 else "bounding_box_test")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{label:04d}_c{1 + place % 3}s1_{row:06d}_00.png"
        Image.fromarray(images.image(row)).save(folder / name)
