"""Glyphs: fonts that lie, the splits, the cache, pairs. Fonts are built here, from rectangles."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

from mpsoftmax.data import glyph_cache
from mpsoftmax.data.font_files import font_files
from mpsoftmax.data.fonts import normalise_family, read_faces
from mpsoftmax.data.glyph_pairs import glyph_pairs
from mpsoftmax.data.glyph_render import merge_families, render_faces
from mpsoftmax.data.glyph_splits import parse_code_points
from mpsoftmax.data.glyphs import open_glyphs
from mpsoftmax.data.image_set import ImageSet

BLANK = ()
BOX = ((100, 0, 900, 800), (200, 100, 800, 700))
NOTDEF = ((50, 0, 300, 700),)
FIRST = 0x4E00


def bars(key, weight=0, spread=1):
    """Four rectangles drawn from a key: characters of one 'design' share them but for `weight`."""
    rng = np.random.default_rng([key, spread])
    corners = rng.integers(0, 500, (4, 2))
    sizes = rng.integers(100, 300, (4, 2)) + weight
    return tuple(
        (int(x), int(y), int(x + w), int(y + h))
        for (x, y), (w, h) in zip(corners, sizes, strict=True)
    )


def font(shapes, family="Test", style="Regular", names=None, symbol=False):
    """A TrueType font: {code point: rectangles}; `names` gives glyphs other names."""
    names = {code: (names or {}).get(code, f"glyph{code}") for code in shapes}
    glyphs = {".notdef": NOTDEF, **{names[code]: shape for code, shape in shapes.items()}}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap(names)
    drawn = {}
    for name, shape in glyphs.items():
        pen = TTGlyphPen(None)
        for x0, y0, x1, y1 in shape:
            pen.moveTo((x0, y0))
            for point in ((x0, y1), (x1, y1), (x1, y0)):
                pen.lineTo(point)
            pen.closePath()
        drawn[name] = pen.glyph()
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=880, descent=-120)
    post_script = f"{family}-{style}".replace(" ", "")
    builder.setupNameTable({"familyName": family, "styleName": style, "psName": post_script})
    builder.setupOS2()
    builder.setupPost()
    if symbol:
        table = builder.font["cmap"].tables[-1]
        table.platformID, table.platEncID = 3, 0
        builder.font["cmap"].tables = [table]
    return builder.font


def saved(path, *args, **kwargs):
    font(*args, **kwargs).save(path)
    return path


def letters(num, spread=1, weight=0):
    return {FIRST + i: bars(i, weight, spread) for i in range(num)}


def drawn(files, min_fonts=1, code_points=None):
    faces, problems = read_faces(files)
    glyphs, num_dropped = render_faces(faces, code_points, min_fonts, 32)
    return glyphs, num_dropped, problems


@pytest.fixture(scope="module")
def default_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def families(tmp_path):
    """A folder of 4 families of 60 characters, two weights each."""
    for family in range(4):
        for weight, style in enumerate(("Regular", "Bold")):
            shapes = letters(60, spread=family, weight=30 * weight)
            saved(tmp_path / f"{family}{style}.ttf", shapes, f"Family{family}", style)
    return tmp_path


def opened(folder, **options):
    return open_glyphs(
        fonts=[folder],
        use_system_fonts=False,
        use_matplotlib_fonts=False,
        cache_dir=folder / "cache",
        **options,
    )


# Fonts and their lies


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("AR PL UMing TW MBE", "ar pl uming"),
        ("Noto Sans CJK SC", "noto sans cjk"),
        ("Noto-Serif_CJK  JP Black", "noto serif cjk"),
        ("DejaVu Sans Condensed", "dejavu sans"),
        ("DejaVu Sans Mono", "dejavu sans mono"),
        ("Bold", "bold"),
    ],
)
def test_members_of_a_family_get_one_name(name, family):
    assert normalise_family(name) == family


def test_a_font_of_placeholders_is_left_out(tmp_path):
    shapes = {FIRST: BOX}
    last_resort = font(shapes)
    for table in last_resort["cmap"].tables:
        table.cmap = dict.fromkeys(range(FIRST, FIRST + 50), table.cmap[FIRST])
    last_resort.save(tmp_path / "resort.ttf")
    faces, problems = read_faces([tmp_path / "resort.ttf"])
    assert not faces
    assert "50 code points onto 2 glyphs: a font of placeholders" in problems[0]


def test_matplotlibs_own_placeholder_font_is_left_out():
    files = font_files(use_system=False)
    assert any("LastResort" in file.name for file in files)
    faces, problems = read_faces(file for file in files if "LastResort" in file.name)
    assert not faces
    assert "font of placeholders" in problems[0]


def test_a_map_that_glyph_names_contradict_is_believed_only_where_confirmed(tmp_path):
    shapes = {0x41: bars(1), 0x42: bars(2), 0xA1: bars(3), 0xA2: bars(4), 0x43: bars(5)}
    names = {0x41: "A", 0x42: "B", 0xA1: "Gamma", 0xA2: "Lambda", 0x43: "unionsqdisplay"}
    (face,), problems = read_faces([saved(tmp_path / "tex.ttf", shapes, names=names)])
    assert face.code_points.tolist() == [0x41, 0x42]
    assert "contradict 2 of 5 entries" in problems[0]
    # A single look-alike sharing a glyph is no lie.
    shapes = {0x41 + i: bars(i) for i in range(20)}
    names = {code: chr(code) for code in shapes} | {0x54: "Tau"}
    (face,), problems = read_faces([saved(tmp_path / "plain.ttf", shapes, names=names)])
    assert len(face.code_points) == 20
    assert not problems


def test_blanks_placeholders_and_the_oversized_are_dropped(tmp_path):
    shapes = letters(6)
    shapes |= {FIRST + 100: BLANK, FIRST + 101: BLANK}
    shapes |= dict.fromkeys(range(FIRST + 200, FIRST + 204), BOX)  # 4 times: a placeholder
    shapes |= dict.fromkeys(range(FIRST + 300, FIRST + 303), bars(77))  # 3 times: look-alikes
    shapes |= {FIRST + 400: NOTDEF}  # the face's own picture of a missing character
    shapes |= {FIRST + 500: ((0, 0, 1300, 100),)}  # wider than the frame
    shapes |= {0xE000: bars(5), 0xAD: bars(6)}  # private use, format
    glyphs, num_dropped, _ = drawn([saved(tmp_path / "a.ttf", shapes)])
    kept = [*range(FIRST, FIRST + 6), *range(FIRST + 300, FIRST + 303)]
    assert glyphs.code_points.tolist() == kept
    assert num_dropped == {"blank": 2, "placeholder": 5, "too large": 1, "duplicate": 0}


def test_exact_duplicates_of_a_character_are_dropped_and_counted(tmp_path):
    one = saved(tmp_path / "one.ttf", letters(10), "One")
    shapes = letters(10) | {FIRST + 3: bars(3, spread=9), FIRST + 4: bars(4, spread=9)}
    other = saved(tmp_path / "other.ttf", shapes, "Other")
    glyphs, num_dropped, _ = drawn([one, other])
    assert num_dropped["duplicate"] == 8
    assert glyphs.code_points[glyphs.faces == 1].tolist() == [FIRST + 3, FIRST + 4]
    twice, _, _ = drawn([one, other], min_fonts=2)
    assert twice.code_points.tolist() == [FIRST + 3] * 2 + [FIRST + 4] * 2


def test_filters_of_a_face_do_not_depend_on_other_faces(tmp_path):
    shapes = letters(5) | dict.fromkeys(range(FIRST + 50, FIRST + 55), BOX)
    one = saved(tmp_path / "one.ttf", shapes, "One")
    # Only one of the five boxes is offered by both: it is a placeholder all the same.
    other = saved(tmp_path / "other.ttf", letters(5, spread=2) | {FIRST + 50: bars(8)}, "Other")
    glyphs, _, _ = drawn([one, other], min_fonts=2)
    assert set(glyphs.code_points.tolist()) == set(range(FIRST, FIRST + 5))


def test_all_faces_of_a_collection_are_read(tmp_path):
    collection = TTCollection()
    collection.fonts = [
        font(letters(8), "Region", "CN"),
        font(letters(8), "Region", "TW"),  # shares the outlines of the first
        font(letters(8, spread=3), "Region", "Other"),
    ]
    collection.save(tmp_path / "all.ttc", shareTables=True)
    faces, problems = read_faces([tmp_path / "all.ttc"])
    assert not problems
    assert [face.index for face in faces] == [0, 1, 2]
    assert faces[0].outlines == faces[1].outlines != faces[2].outlines
    glyphs, num_dropped, _ = drawn([tmp_path / "all.ttc"])
    assert np.bincount(glyphs.faces, minlength=3).tolist() == [8, 0, 8]
    assert num_dropped["duplicate"] == 8


def test_what_cannot_be_read_is_reported(tmp_path):
    (tmp_path / "bitmap.pcf.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "broken.ttf").write_bytes(b"this is no font whatever its name says")
    (tmp_path / "short.otf").write_bytes(b"OTTO")
    saved(tmp_path / "symbol.ttf", letters(3), "Symbols", symbol=True)
    saved(tmp_path / "fine.ttf", letters(3), "Fine")
    saved(tmp_path / "second.ttf", letters(3, spread=2), "Fine")
    glyphs, _, problems = drawn(
        font_files([tmp_path], use_matplotlib=False, use_system=False), min_fonts=1
    )
    assert set(glyphs.code_points.tolist()) == set(range(FIRST, FIRST + 3))
    found = {Path(problem.split(":")[0].split(",")[0]).name: problem for problem in problems}
    assert "not an outline font" in found["bitmap.pcf.gz"]
    assert "cannot be loaded" in found["broken.ttf"]
    assert "too short" in found["short.otf"]
    assert "no Unicode character map" in found["symbol.ttf"]
    assert "Fine-Regular was already read from" in found["second.ttf"]
    assert len(problems) == 5
    images = opened(tmp_path, min_fonts=1, held_out=0)
    assert set(images.problems) == set(problems)


def test_named_fonts_come_first_and_must_exist(tmp_path):
    path = saved(tmp_path / "mine.ttf", letters(3))
    files = font_files([path, tmp_path], use_system=False)
    assert files[0] == path
    assert files.count(path) == 1
    assert any(file.name == "DejaVuSans.ttf" for file in files[1:])
    with pytest.raises(ValueError, match=r"fonts: .*nowhere\.ttf"):
        font_files([tmp_path / "nowhere.ttf"])


def test_the_character_is_centred_and_has_the_stated_size(tmp_path):
    # The em box, from 0.12 below to 0.88 above the baseline: 27 of 32 pixels, in the middle.
    shapes = {0x41: ((0, -120, 1000, 880),), 0x2C: ((400, -100, 600, 100),)}
    glyphs, _, _ = drawn([saved(tmp_path / "em.ttf", shapes)])
    comma, em = glyphs.images
    rows, columns = np.flatnonzero(em.max(axis=1) > 127), np.flatnonzero(em.max(axis=0) > 127)
    assert abs(len(rows) - 27) <= 1
    assert abs(len(columns) - 27) <= 1
    assert abs(rows.mean() - 15.5) <= 1
    assert abs(columns.mean() - 15.5) <= 1
    assert np.flatnonzero(comma.max(axis=1)).min() > 20  # a comma stays low
    assert em.max() == 255


def test_families_of_one_design_are_merged(tmp_path):
    saved(tmp_path / "a.ttf", letters(40), "Droid")
    saved(tmp_path / "b.ttf", letters(40, weight=12), "Descendant")
    saved(tmp_path / "c.ttf", letters(40, spread=5), "Stranger")
    faces, _ = read_faces(sorted(tmp_path.glob("*.ttf")))
    glyphs, _ = render_faces(faces, None, 1, 32)
    merged = merge_families(glyphs, [face.family for face in faces])
    assert merged == ["descendant + droid", "descendant + droid", "stranger"]


# The set and its splits


def test_train_and_closed_share_classes_and_no_family(families):
    train, closed = opened(families, split="train"), opened(families, split="closed")
    assert train.class_names == closed.class_names
    assert set(train.labels) == set(range(len(train.class_names)))
    assert not set(train.families) & set(closed.families)
    assert len(set(closed.families)) == 1
    for images in (train, closed):
        index = len(images) // 2
        assert images.name(index) == (
            f"{images.class_names[images.labels[index]]} in {images.font_names[images.fonts[index]]}"
        )
        family = images.family_names[images.families[index]]
        assert images.font_names[images.fonts[index]].lower().startswith(family)


def test_open_holds_other_characters_in_all_families(families):
    train, unseen = opened(families, split="train"), opened(families, split="open")
    assert not set(train.class_names) & set(unseen.class_names)
    assert len(train.class_names) + len(unseen.class_names) == 60
    assert 4 <= len(unseen.class_names) <= 22  # 20 % of 60, by chance
    assert len(set(unseen.families)) == 4
    assert len(opened(families, split="all")) == 480


def test_held_out_characters_do_not_depend_on_the_fonts(families):
    before = opened(families, split="open").class_names
    saved(families / "9.ttf", letters(60, spread=9), "Another")
    after = opened(families, split="open")
    assert after.class_names == before
    assert len(set(after.families)) == 5
    assert opened(families, split="open", seed=1).class_names != before
    # A character fewer does not move the others.
    some = opened(families, split="open", code_points=f"U+{FIRST:X}-U+{FIRST + 39:X}").class_names
    assert list(some) == [name for name in before if int(name[2:], 16) < FIRST + 40]


def test_images_are_grey_rgb_and_survive_pickling(families):
    images = opened(families)
    assert isinstance(images, ImageSet)
    image = images.image(7)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert (image == image[:, :, :1]).all()
    data = pickle.dumps(images)
    assert len(data) < 40_000 < len(images) * 32 * 32
    copy = pickle.loads(data)
    assert np.array_equal(copy.image(7), image)
    assert opened(families, size=20).image(0).shape == (20, 20, 3)


def test_a_single_family_gives_no_closed_split(tmp_path):
    saved(tmp_path / "a.ttf", letters(30))
    assert len(opened(tmp_path, min_fonts=1)) > 0
    with pytest.raises(ValueError, match="split: 'closed' is empty"):
        opened(tmp_path, min_fonts=1, split="closed")


def test_the_default_set_has_enough_classes(default_cache):
    options = {"use_system_fonts": False, "cache_dir": default_cache}
    train = open_glyphs(**options)
    closed, unseen = (open_glyphs(split=split, **options) for split in ("closed", "open"))
    assert len(train.class_names) >= 2500
    assert len(train) > 5 * len(train.class_names)
    assert np.bincount(train.labels).min() >= 1
    assert len(unseen.class_names) >= 600
    assert closed.class_names == train.class_names
    assert len(np.unique(closed.labels)) > 1500
    assert not set(train.families) & set(closed.families)
    assert sum("LastResort" in problem for problem in train.problems) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split: 'test' is not one of train, closed, open, all"),
        ({"min_fonts": 0}, "min_fonts: 0"),
        ({"min_fonts": 99}, "min_fonts: no character has 99"),
        ({"size": 4}, "size: 4"),
        ({"held_out": 1.0}, "held_out: 1.0"),
        ({"code_points": "latin"}, "code_points: 'latin'"),
        ({"code_points": "U+0050-U+0040"}, "ascending"),
    ],
)
def test_arguments_are_checked(families, options, message):
    with pytest.raises(ValueError, match=message):
        opened(families, **options)


def test_code_points_by_name_and_range():
    assert len(parse_code_points("cjk")) == 20_902
    assert len(parse_code_points("hangul, cjk")) == 20_902 + 11_172
    assert parse_code_points("U+41-U+43,U+42").tolist() == [0x41, 0x42, 0x43]
    assert parse_code_points(None) is None


# The cache


def test_a_set_is_rendered_once(families, monkeypatch):
    first = opened(families)
    monkeypatch.setattr(glyph_cache, "render_faces", lambda *_: pytest.fail("rendered again"))
    again = opened(families, split="open")
    assert len(again) + len(first) + len(opened(families, split="closed")) == 480
    monkeypatch.undo()
    pixels = first.image(0)
    TTFont(families / "0Bold.ttf").save(families / "0Bold.ttf")  # touched
    opened(families)
    assert len(list((families / "cache").iterdir())) == 2
    assert np.array_equal(first.image(0), pixels)


def test_the_environment_names_the_cache(families, monkeypatch):
    monkeypatch.setenv(glyph_cache.CACHE_VARIABLE, str(families / "elsewhere"))
    open_glyphs(fonts=[families], use_system_fonts=False, use_matplotlib_fonts=False)
    assert len(list((families / "elsewhere").glob("glyphs-*/images.npy"))) == 1


def test_a_cache_that_cannot_be_written_is_named(families):
    (families / "cache").write_text("a file is in the way")
    with pytest.raises(ValueError, match=r"cache_dir: .*MPSOFTMAX_CACHE"):
        opened(families)


def _open_and_sum(folder, barrier, results):
    barrier.wait()
    images = opened(folder)
    results.put(int(sum(int(images.image(i).sum()) for i in range(len(images)))))


def test_processes_may_race_for_the_cache(families):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    racers = [
        context.Process(target=_open_and_sum, args=(families, barrier, results)) for _ in range(3)
    ]
    for racer in racers:
        racer.start()
    sums = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(timeout=60)
        assert racer.exitcode == 0
    assert len(set(sums)) == 1
    left = [path.name for path in (families / "cache").iterdir()]
    assert len(left) == 1
    assert left[0].startswith("glyphs-")


# Pairs


def test_pairs_are_balanced_folds_of_honest_pairs(families):
    images = opened(families, split="open")
    pairs, same = glyph_pairs(images, 200, seed=1)
    assert pairs.shape == (200, 2)
    assert pairs.dtype == np.int64
    folds = same.reshape(10, 20)
    assert folds[:, :10].all()
    assert not folds[:, 10:].any()
    left, right = pairs.T
    assert ((images.labels[left] == images.labels[right]) == same).all()
    assert (images.families[left] != images.families[right])[same].all()
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == 200
    counts = np.bincount(images.labels[left][same], minlength=len(images.class_names))
    assert counts.max() - counts.min() <= 1
    again, _ = glyph_pairs(images, 200, seed=1)
    other, _ = glyph_pairs(images, 200, seed=2)
    assert np.array_equal(again, pairs)
    assert not np.array_equal(other, pairs)


def test_impossible_pairs_are_refused(families):
    images = opened(families, split="open")
    with pytest.raises(ValueError, match="num_pairs: 30"):
        glyph_pairs(images, 30, seed=0)
    with pytest.raises(ValueError, match="pairs of one character in two font families"):
        glyph_pairs(images, 20_000, seed=0)
