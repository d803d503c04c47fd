"""IJB folders and the alignment of faces on five points."""

import numpy as np
import pytest
from ijb_folder import write_ijb

from mpsoftmax.data.alignment import TEMPLATE, align, similarity_transform
from mpsoftmax.data.ijb import open_ijb


def test_the_transform_is_the_least_squares_one():
    """Against a linear solve: x' = a x - b y + c, y' = b x + a y + d."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(60, 20, (5, 2))
        rows, wanted = [], []
        for (x, y), (u, v) in zip(points, TEMPLATE, strict=True):
            rows += [[x, -y, 1, 0], [y, x, 0, 1]]
            wanted += [u, v]
        a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
        np.testing.assert_allclose(similarity_transform(points), [[a, -b, c], [b, a, d]], atol=1e-9)


def test_a_face_at_the_template_stays_as_it_is():
    pixels = np.random.default_rng(1).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    assert np.array_equal(align(pixels, TEMPLATE), pixels)


def test_whole_pixels_and_quarter_turns_are_exact():
    pixels = np.random.default_rng(2).integers(0, 256, (140, 150, 3)).astype(np.uint8)
    shifted = align(pixels, TEMPLATE + np.array([9, 5]))
    assert np.array_equal(shifted, pixels[5:117, 9:121])
    turned = np.rot90(pixels[:140, :140])  # (x, y) goes to (y, 139 - x)
    points = np.stack([TEMPLATE[:, 1], 139 - TEMPLATE[:, 0]], 1)
    found = align(np.ascontiguousarray(turned), points)
    assert np.array_equal(found[1:-1, 1:-1], pixels[:112, :112][1:-1, 1:-1])


def test_half_a_pixel_is_the_mean_of_two():
    pixels = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 120, 0).repeat(3, 2)
    found = align(pixels, TEMPLATE + np.array([0.5, 0]))
    assert np.array_equal(found, pixels[:112, :112] + 1)


def test_points_without_a_similarity():
    with pytest.raises(ValueError, match="different finite points"):
        similarity_transform(np.full((5, 2), 3.0))
    with pytest.raises(ValueError, match="different finite points"):
        similarity_transform(np.full((5, 2), np.nan))


@pytest.mark.parametrize(("name", "ends"), [("ijbc", ("G1", "G2")), ("ijbb", ("S1", "S2"))])
def test_reading(tmp_path, name, ends):
    root = write_ijb(tmp_path / "set", name=name, ends=ends)
    found = open_ijb(root)
    lines = (root / "meta" / f"{name}_face_tid_mid.txt").read_text().splitlines()
    marks = (root / "meta" / f"{name}_name_5pts_score.txt").read_text().splitlines()
    assert len(found.images) == len(lines) == len(found.scores)
    file, template, medium = lines[7].split()
    assert (found.templates[7], found.media[7]) == (int(template), int(medium))
    assert found.images.name(7).endswith(f"loose_crop/{file}")
    fields = marks[7].split()
    assert found.images.points[7].ravel().tolist() == [float(one) for one in fields[1:11]]
    assert found.scores[7] == float(fields[11])
    assert found.images.image(7).shape == (112, 112, 3)
    assert found.same.sum() == 3 * 12
    assert [one.name for one in found.galleries] == [f"gallery_{end}" for end in ends]
    assert found.galleries[1].subjects.tolist() == [6, 7, 8, 9, 10, 11]
    assert found.probes is not None
    assert len(found.probes.templates) == 24


BROKEN = [
    ("face_tid_mid.txt", "1.png 1000 0\n", "must name the same faces in the same order; line 2"),
    ("face_tid_mid.txt", "1.png 1000\n", "columns name, template, media expected"),
    ("face_tid_mid.txt", "1.png one 0\n", "columns name, template, media expected"),
    ("name_5pts_score.txt", "1.png 1 2 3\n", "columns name, p0"),
    ("template_pair_label.txt", "1000 1001 2\n", "0 or 1 expected as a label"),
    ("template_pair_label.txt", "1000 77 1\n", "template 77 has no face"),
    ("template_pair_label.txt", "", "columns first, second, same expected"),
    ("1N_gallery_G2.csv", "TEMPLATE_ID,SUBJECT_ID\n1000,1\n1000,2\n", "several subjects"),
    ("1N_gallery_G2.csv", "TEMPLATE,SUBJECT_ID\n1000,1\n", "columns TEMPLATE_ID, SUBJECT_ID"),
    ("1N_probe_mixed.csv", None, "1N_probe_mixed.csv"),
]


@pytest.mark.parametrize(("file", "text", "message"), BROKEN)
def test_malformed(tmp_path, file, text, message):
    root = write_ijb(tmp_path / "set")
    path = root / "meta" / f"ijbc_{file}"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_ijb(root)


def test_a_name_that_leads_elsewhere(tmp_path):
    root = write_ijb(tmp_path / "set")
    for end in ("face_tid_mid.txt", "name_5pts_score.txt"):
        path = root / "meta" / f"ijbc_{end}"
        path.write_text(path.read_text().replace("1.png", "../secret.png", 1))
    with pytest.raises(ValueError, match="file name expected"):
        open_ijb(root)


def test_a_missing_picture_and_no_such_folder(tmp_path):
    root = write_ijb(tmp_path / "set")
    (root / "loose_crop" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"line 5: no file '5.png'"):
        open_ijb(root)
    with pytest.raises(ValueError, match="a folder with meta/ijbb_face_tid_mid"):
        open_ijb(tmp_path)
