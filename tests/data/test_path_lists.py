"""Lists of paths in the dialects of the field."""

import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpsoftmax.data.convert import convert
from mpsoftmax.data.inspect import inspect
from mpsoftmax.data.list_dialect import dialect_of
from mpsoftmax.data.open import open_images

FILES = ["p/a.jpg", "q/b c.jpg", "p/d.jpg"]
LABELS = [2, 0, -1]

DIALECTS = {
    "tab": "p/a.jpg\t2\nq/b c.jpg\t0\n\np/d.jpg\t-1\n",
    "space": "p/a.jpg 2\nq/b c.jpg 0\n./p/d.jpg -1\n",
    "im2rec": "0\t2.000000\tp/a.jpg\n7\t0\tq/b c.jpg\n3\t-1\tp/d.jpg\n",
    "face2rec": "1\tp/a.jpg\t2\n1\tq/b c.jpg\t0\n1\tp/d.jpg\t-1\n",
    "cvlface": "0\tp/a.jpg\t2\n1\tq/b c.jpg\t0\n2\tp/d.jpg\t-1\n",
    "csv": "p/a.jpg, 2, 1\nq/b c.jpg, 0, 1\np/d.jpg, -1, 0\n",
}
LONG = {
    "im2rec": "0\t2\t9\t9\tp/a.jpg\n7\t0\t9\t9\tq/b c.jpg\n3\t-1\t9\t9\tp/d.jpg\n",
    "face2rec": "0\tp/a.jpg\t2\t1\t2\t3\t4\n1\tq/b c.jpg\t0\t1\t2\t3\t4\n0\tp/d.jpg\t-1\t1\t2\t3\t4\n",
    "csv": "label,path\n2,p/a.jpg\n0,q/b c.jpg\n-1,p/d.jpg\n",
}


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(FILES):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(bytes([number]))
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("dialect", "text"),
    [*DIALECTS.items(), *LONG.items()],
    ids=[*DIALECTS, *(f"{d}+" for d in LONG)],
)
def test_each_dialect_is_recognised(root, dialect, text):
    assert dialect_of(text.splitlines(), "list") == dialect
    (root / "list.txt").write_text(text)
    for images in (open_images(root / "list.txt"), open_images(root / "list.txt", dialect=dialect)):
        assert images.labels.tolist() == LABELS
        assert [images.image(k) for k in range(3)] == [b"\0", b"\1", b"\2"]
        assert list(images.class_names) == ["0", "1", "2"]
        assert images.name(1) == str(root / "q/b c.jpg")


def test_a_list_over_another_folder_or_a_tar(root, tmp_path):
    (tmp_path / "train.lst").write_text(DIALECTS["im2rec"])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(root, ".")
    for holder in (root, tmp_path / "a.tar"):
        images = open_images(f"{tmp_path}/train.lst@{holder}")
        assert (images.labels.tolist(), images.image(2)) == (LABELS, b"\2")
    with pytest.raises(ValueError, match=r"train\.lst:1: no file 'p/a\.jpg' in"):
        open_images(tmp_path / "train.lst")
    assert inspect(f"{tmp_path}/train.lst@{root}").format == "list of paths"


def test_which_label_of_a_csv(root):
    (root / "a.csv").write_text("path,fine,coarse\np/a.jpg,4,1\np/d.jpg,2,0\n")
    with pytest.raises(ValueError, match="found path, fine, coarse; say which with label_column"):
        open_images(root / "a.csv")
    assert open_images(root / "a.csv", label_column="coarse").labels.tolist() == [1, 0]
    (root / "b.csv").write_text(DIALECTS["csv"])
    assert open_images(root / "b.csv", label_column=2).labels.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match=r"label_column: 3; allowed without a header: 1\.\.2"):
        open_images(root / "b.csv", label_column=3)
    (root / "c.csv").write_text("p/a.jpg,tea\np/d.jpg,ale\n")
    images = open_images(root / "c.csv")
    assert (list(images.class_names), images.labels.tolist()) == (["ale", "tea"], [1, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\ta.jpg\t0\n1\tb.jpg\t1\n", "column 1 may be a flag or a key; say dialect=face2rec"),
        ("1\t2\t3\n4\t5\t6\n", "every column holds numbers only; say dialect=im2rec"),
        ("webface\t0\t99\t5\n", "TFace's index of .tfrecord files, which are not read"),
        ("a.jpg b.jpg 1\na.jpg c.jpg 0\n", "is a list of pairs, which data.eval takes"),
        ("a.jpg\tb.jpg\t1\n", "is a list of pairs, which data.eval takes"),
        (
            "same,file1,file2\n1,a.jpg,b.jpg\n",
            "'same,file1,file2' heads a list of pairs, which data.e",
        ),
        (
            "fold,same,file1,file2\n0,1,a.jpg,b.jpg\n",
            "'fold,same,file1,file2' heads a list of pairs",
        ),
        ("3\ta.jpg\n4\tb.jpg\n", "'label TAB path' found; allowed: 'path TAB label'"),
        ("a.jpg\t1\nb.jpg 2\n", "some lines have TABs and others have none"),
        ("a.jpg one\n", "no dialect fits 'a.jpg one'; allowed: path TAB label"),
        ("a.jpg\n", "no dialect fits 'a.jpg'"),
        ("\n \n", "no lines in it"),
        ("p/a.jpg\t1\n../x.jpg\t2\n", r":2: path inside .* expected, found '\.\./x\.jpg'"),
        ("p/a.jpg\t1\n/etc/x.jpg\t2\n", r":2: path inside .* expected, found '/etc/x\.jpg'"),
        ("p/a.jpg\t1\np/D.jpg\t2\n", r":2: no file 'p/D\.jpg' in .*; did you mean '.*p/d\.jpg'"),
        ("p/a.jpg\t1\np/d.jpg\t-2\n", r"label -2 of p/d\.jpg \(line 2\) is out of range"),
        ("p/a.jpg\t1\np/d.jpg\t0.5\n", ":2: a whole number expected as label, found '0.5'"),
    ],
)
def test_what_is_refused(root, text, message):
    (root / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_images(root / "list.txt")


def test_a_stated_dialect_settles_it_and_is_held_to(root):
    (root / "list.txt").write_text("0\tp/a.jpg\t0\n1\tp/d.jpg\t1\n")
    for dialect in ("face2rec", "cvlface"):
        assert open_images(root / "list.txt", dialect=dialect).labels.tolist() == [0, 1]
    with pytest.raises(
        ValueError, match=r"list\.txt:1: 'path TAB label' expected \(read as 'tab'\)"
    ):
        open_images(root / "list.txt", dialect="tab")
    with pytest.raises(ValueError, match="dialect: 'tsv'; allowed: auto, tab, space"):
        open_images(root / "list.txt", dialect="tsv")


def test_a_list_turned_into_folders_gets_its_labels_as_folders(root, tmp_path):
    """Paths of a list say nothing about its classes."""
    (root / "list.txt").write_text("p/a.jpg 0\np/d.jpg 1\nq/b c.jpg 1\n")
    convert(root / "list.txt", tmp_path / "out")
    images = open_images(tmp_path / "out")
    assert (images.labels.tolist(), list(images.class_names)) == ([0, 1, 1], ["0", "1"])
    assert [images.image(k) for k in range(3)] == [b"\0", b"\2", b"\1"]


def test_an_option_of_another_format(root):
    (root / "list.txt").write_text(DIALECTS["tab"])
    with pytest.raises(
        ValueError, match="layout='folders' is no option of this format; allowed: dial"
    ):
        open_images(root / "list.txt", layout="folders")


def test_identifiers_are_no_class_numbers(tmp_path):
    """A table of 10^14 classes would take any memory; in a list, in Parquet and in shards alike."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "l.txt").write_text("a.png\t123456789012345\nb.png\t5\n")
    columns = {"image": [b"x", b"y"], "label": [123456789012345, 5]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        (tmp_path / "a.cls").write_text("123456789012345")
        for name in ("a.png", "a.cls"):
            archive.add(tmp_path / name, name)
    largest = {"image": [b"x"], "label": pa.array([2**64 - 1], pa.uint64())}
    pq.write_table(pa.table(largest), tmp_path / "u.parquet")
    with pytest.raises(ValueError, match=r"u\.parquet.*label 18446744073709551615"):
        open_images(tmp_path / "u.parquet")
    for name in ("l.txt", "p.parquet", "w.tar"):
        for check in (True, False):
            with pytest.raises(
                ValueError, match=f"{name}.*label 123456789012345 among [12] images"
            ):
                open_images(tmp_path / name, check=check)
