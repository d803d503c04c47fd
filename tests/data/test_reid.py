"""Re-identification sets: the published layouts, junk, distractors, malformed ones, real PKU-Reid."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from mpsoftmax.data.reid import layout_of, open_reid

MARKET = (
    "query/0002_c1s1_000451_00.jpg",
    "query/0007_c3s3_077419_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c2s1_000151_01.jpg",
    "bounding_box_test/0002_c3s1_000451_03.jpg",
    "bounding_box_test/0007_c6s3_077419_00.jpg",
    "bounding_box_test/Thumbs.db",
    "bounding_box_train/0009_c1s1_000451_00.jpg",
    "images/ANY_NAME.jpg",
)
DUKE = ("query/0005_c2_f0046985.jpg", "bounding_box_test/0005_c8_f0055305.jpg")


def picture(number):
    out = io.BytesIO()
    Image.new("RGB", (4, 8), (number, 0, 0)).save(out, "png")
    return out.getvalue()


def write(root, paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))
    return root


def rows(found):
    return {
        (found.images.name(k).rpartition("/")[2], int(p), int(c), bool(q))
        for k, (p, c, q) in enumerate(zip(found.people, found.cameras, found.is_query, strict=True))
    }


@pytest.mark.parametrize("parent", ["", "Market-1501-v15.09.15/"])
@pytest.mark.parametrize("packed", [False, True])
def test_market(tmp_path, parent, packed):
    root = write(tmp_path / "set", [parent + path for path in MARKET])
    if packed:
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            archive.add(root, ".")
        root = tmp_path / "set.tar"
    found = open_reid(root)
    expected = {
        ("0002_c1s1_000451_00.jpg", 2, 1, True),
        ("0007_c3s3_077419_00.jpg", 7, 3, True),
        ("0000_c2s1_000151_01.jpg", 0, 2, False),
        ("0002_c3s1_000451_03.jpg", 2, 3, False),
        ("0007_c6s3_077419_00.jpg", 7, 6, False),
    }
    assert rows(found) == expected
    assert (found.layout, found.num_junk) == ("market", 1)
    where = found.people.tolist().index(2)
    assert found.images.image(where) == picture(4 if not found.is_query[where] else 0)
    more = open_reid(root, distractors=True)
    assert rows(more) == expected | {("ANY_NAME.jpg", 0, 0, False)}


def test_duke(tmp_path):
    found = open_reid(write(tmp_path, [f"DukeMTMC-reID/{path}" for path in DUKE]))
    assert rows(found) == {
        ("0005_c2_f0046985.jpg", 5, 2, True),
        ("0005_c8_f0055305.jpg", 5, 8, False),
    }


@pytest.mark.parametrize("folder", ["test", "mask_test_v2"])
def test_msmt(tmp_path, folder):
    paths = ["0001/0001_000_01_0303morning_0008_0.jpg", "0001/0001_001_14_0303noon_0012_1.jpg"]
    write(tmp_path / folder, paths)
    (tmp_path / "list_query.txt").write_text(f"{paths[0]} 1\n")
    (tmp_path / "list_gallery.txt").write_text(f"{paths[1]} 1\n")
    found = open_reid(tmp_path)
    assert found.layout == "msmt17"
    assert rows(found) == {
        ("0001_000_01_0303morning_0008_0.jpg", 1, 1, True),
        ("0001_001_14_0303noon_0012_1.jpg", 1, 14, False),
    }
    (tmp_path / "list_query.txt").write_text(f"{paths[0]} 1\n{paths[0]}\n")
    with pytest.raises(ValueError, match=r"list_query.txt:2: 'path person' expected"):
        open_reid(tmp_path)
    (tmp_path / "list_query.txt").write_text("0001/0001_000_01_x.jpg 1\n")
    with pytest.raises(ValueError, match="no file"):
        open_reid(tmp_path)


def test_what_is_no_such_set(tmp_path):
    with pytest.raises(ValueError, match="no such folder or tar"):
        open_reid(tmp_path / "nothing")
    write(tmp_path, ["a/b.jpg"])
    assert layout_of(tmp_path) is None
    with pytest.raises(ValueError, match="no re-identification set; allowed: query/"):
        open_reid(tmp_path)
    write(tmp_path, ["query/0001_c1.jpg", "bounding_box_test/person.jpg"])
    with pytest.raises(ValueError, match=r"person\.jpg: a name that begins PERSON_cCAMERA"):
        open_reid(tmp_path)
    with pytest.raises(ValueError, match="allowed with Market-1501's folder images/"):
        open_reid(write(tmp_path / "duke", DUKE), distractors=True)


def test_pku_reid(shared_data):
    found = open_reid(shared_data / "pku_reid74.tar")
    assert found.layout == "pku"
    assert len(found.images) == 192
    assert len(np.unique(found.people)) == 12
    assert set(found.cameras[found.is_query]) == {1}
    assert set(found.cameras[~found.is_query]) == {2}
    assert found.is_query.sum() == 96
