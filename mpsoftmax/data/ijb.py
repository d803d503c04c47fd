"""IJB-B and IJB-C as insightface packs them: faces, templates, pairs of templates, galleries and probes.

    IJBC/loose_crop/<name>                     images
    IJBC/meta/ijbc_face_tid_mid.txt            name template_id media_id
    IJBC/meta/ijbc_name_5pts_score.txt         name x1 y1 .. x5 y5 detector_score, in the same order
    IJBC/meta/ijbc_template_pair_label.txt     template1 template2 0|1
    IJBC/meta/ijbc_1N_gallery_G1.csv, _G2.csv  TEMPLATE_ID,SUBJECT_ID,..., with a header (IJB-B: _S1, _S2)
    IJBC/meta/ijbc_1N_probe_mixed.csv          the same

The first three have spaces between columns and no header. Without the csv files there is no 1:N.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from mpsoftmax.data.alignment import align
from mpsoftmax.data.decode import CorruptImage, decode_whole
from mpsoftmax.data.image_set import IGNORE, ImageSet
from mpsoftmax.data.named_files import files_of

PREFIXES = ("ijbb", "ijbc")
_GALLERIES = (("S1", "S2"), ("G1", "G2"))


@dataclass(frozen=True, eq=False)
class AlignedImages:
    """Faces cut out at the ArcFace template, uint8 [112, 112, 3]; an ``ImageSet`` labelled -1.

    Attributes:
        images: the pictures they are cut from.
        points: float64 [n, 5, 2], (x, y) in pixels.
        decoder: one of ``mpsoftmax.data.decode.DECODERS``.
    """

    images: ImageSet
    points: np.ndarray
    decoder: str

    @property
    def labels(self) -> np.ndarray:
        """int64 [n], all -1."""
        return np.full(len(self.points), IGNORE, np.int64)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def __len__(self) -> int:
        return len(self.points)

    def image(self, index: int) -> np.ndarray:
        """The aligned face.

        Raises:
            ValueError: it cannot be decoded or aligned.
        """
        try:
            pixels = decode_whole(self.images.image(index), self.decoder)
        except CorruptImage as error:
            raise CorruptImage(f"{self.name(index)}: {error}") from None
        return align(pixels, self.points[index])

    def name(self, index: int) -> str:
        """The file's path."""
        return self.images.name(index)


@dataclass(frozen=True, eq=False)
class TemplateList:
    """Templates int64 [t] and the subject of each, int64 [t]."""

    name: str
    templates: np.ndarray
    subjects: np.ndarray


@dataclass(frozen=True, eq=False)
class IjbSet:
    """One of the two sets.

    Attributes:
        name: "ijbb" or "ijbc".
        images: n aligned faces.
        templates: int64 [n], the template of each face.
        media: int64 [n], the picture or video it comes from.
        scores: float64 [n], of the face detector.
        pairs: int64 [P, 2], template ids.
        same: bool [P].
        galleries: two of them, or none.
        probes: None where there are no galleries.
    """

    name: str
    images: AlignedImages
    templates: np.ndarray
    media: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray
    same: np.ndarray
    galleries: tuple[TemplateList, ...]
    probes: TemplateList | None


def is_ijb(root: Path) -> bool:
    """Whether a folder is one of the two sets."""
    return any((root / "meta" / f"{name}_face_tid_mid.txt").is_file() for name in PREFIXES)


def open_ijb(path: str | os.PathLike[str], *, decoder: str = "pillow") -> IjbSet:
    """Open the folder IJBB or IJBC of the package.

    Args:
        path: The folder that holds `meta/` and `loose_crop/`.
        decoder: one of ``mpsoftmax.data.decode.DECODERS``.

    Raises:
        ValueError: no such folder, a malformed or missing file, an image that is missing, or files that
            contradict each other.
    """
    root = Path(path)
    if not is_ijb(root):
        raise ValueError(f"{root}: a folder with meta/ijbb_face_tid_mid.txt or ijbc_... expected")
    name = next(one for one in PREFIXES if (root / "meta" / f"{one}_face_tid_mid.txt").is_file())
    meta = root / "meta"
    faces = _table(meta / f"{name}_face_tid_mid.txt", {"name": "s", "template": "i", "media": "i"})
    marks = _table(
        meta / f"{name}_name_5pts_score.txt",
        {"name": "s", **{f"p{k}": "f" for k in range(10)}, "score": "f"},
    )
    _check_same_faces(meta, name, faces["name"], marks["name"])
    pairs = _table(
        meta / f"{name}_template_pair_label.txt", {"first": "i", "second": "i", "same": "i"}
    )
    if not np.isin(pairs["same"], (0, 1)).all():
        raise ValueError(f"{meta / name}_template_pair_label.txt: 0 or 1 expected as a label")
    points = np.stack([marks[f"p{k}"] for k in range(10)], 1).reshape(-1, 5, 2)
    galleries, probes = _identification(meta, name)
    found = IjbSet(
        name=name,
        images=AlignedImages(_pictures(root, faces["name"].tolist()), points, decoder),
        templates=faces["template"],
        media=faces["media"],
        scores=marks["score"],
        pairs=np.stack([pairs["first"], pairs["second"]], 1),
        same=pairs["same"] == 1,
        galleries=galleries,
        probes=probes,
    )
    _check_templates(found)
    return found


def _pictures(root: Path, names: list[str]) -> ImageSet:
    for number, name in enumerate(names, start=1):
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise ValueError(f"{root}/meta: line {number}: file name expected, found {name!r}")
    return files_of(root / "loose_crop", names, lambda k: f"{root}/meta: line {k + 1}")


def _check_same_faces(meta: Path, name: str, faces: np.ndarray, marks: np.ndarray) -> None:
    if len(faces) != len(marks) or (faces != marks).any():
        least = min(len(faces), len(marks))
        differing = np.flatnonzero(faces[:least] != marks[:least])
        line = int(differing[0]) + 1 if len(differing) else least + 1
        raise ValueError(
            f"{meta}: {name}_face_tid_mid.txt and {name}_name_5pts_score.txt must name the same faces in the"
            f" same order; line {line} differs"
        )


def _check_templates(found: IjbSet) -> None:
    """Every template asked for has a face."""
    lists = [one for one in (*found.galleries, found.probes) if one is not None]
    asked = {"template_pair_label.txt": found.pairs.ravel()}
    asked |= {f"1N_{one.name}.csv": one.templates for one in lists}
    for where, templates in asked.items():
        lost = np.setdiff1d(templates, found.templates)
        if len(lost):
            raise ValueError(
                f"{found.name}_{where}: template {lost[0]} has no face in {found.name}_face_tid_mid.txt"
            )


def _identification(meta: Path, name: str) -> tuple[tuple[TemplateList, ...], TemplateList | None]:
    probe = meta / f"{name}_1N_probe_mixed.csv"
    for ends in _GALLERIES:
        paths = [meta / f"{name}_1N_gallery_{end}.csv" for end in ends]
        if any(path.is_file() for path in paths):
            lists = tuple(
                _template_list(path, f"gallery_{end}")
                for path, end in zip(paths, ends, strict=True)
            )
            return lists, _template_list(probe, "probe_mixed")
    return (), None


def _template_list(path: Path, name: str) -> TemplateList:
    """Of a file with a line a face: each template once, in order of its number."""
    columns = _table(path, {"TEMPLATE_ID": "i", "SUBJECT_ID": "i"}, header=True)
    rows = np.unique(np.stack([columns["TEMPLATE_ID"], columns["SUBJECT_ID"]], 1), axis=0)
    twice = np.flatnonzero(np.diff(rows[:, 0]) == 0)
    if len(twice):
        raise ValueError(f"{path}: template {rows[twice[0], 0]} has several subjects")
    return TemplateList(name, rows[:, 0].copy(), rows[:, 1].copy())


def _table(path: Path, columns: dict[str, str], header: bool = False) -> dict[str, np.ndarray]:
    """Columns of text (s), whole numbers (i) or numbers (f)."""
    kinds = {"s": pa.string(), "i": pa.int64(), "f": pa.float64()}
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(
                use_threads=False, column_names=None if header else list(columns)
            ),
            pyarrow.csv.ParseOptions(
                delimiter="," if header else " ", quote_char='"' if header else False
            ),
            pyarrow.csv.ConvertOptions(
                column_types={name: kinds[kind] for name, kind in columns.items()},
                include_columns=list(columns),
                null_values=[],
            ),
        )
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: columns {', '.join(columns)} expected: {error}") from None
    found = {name: table[name].to_numpy() for name in columns}
    for name, kind in columns.items():
        if kind == "f" and not np.isfinite(found[name]).all():
            raise ValueError(f"{path}: column {name}: finite numbers expected")
    if not len(table):
        raise ValueError(f"{path}: no lines in it")
    return found
