"""Re-identification sets as they are published: who is seen by which camera, in query or gallery.

- Market-1501, DukeMTMC-reID: folders `query/` and `bounding_box_test/`, at the root or one folder down; names
  begin `PPPP_cX`: person (-1 junk, 0000 distractor) and camera.
- MSMT17: `list_query.txt` and `list_gallery.txt`, lines `path person`, beside `test/` or `mask_test_v2/`; the
  camera is the third field of a name between underscores.
- PKU-Reid: `val/all_imgs/PERSON/CC_O.png`, camera and orientation; camera 01 asks, camera 02 answers.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpsoftmax.data.folder import IMAGE_SUFFIXES
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.named_files import files_of, paths_in

JUNK = -1
_MARKET = re.compile(r"(?:[^/]+/)?(query|bounding_box_test)/([^/]+)")
_MARKET_NAME = re.compile(r"(-?[0-9]{1,9})_c([0-9])")
_MARKET_MORE = re.compile(r"(?:[^/]+/)?images/[^/]+")
_PKU = re.compile(r"(?:.*/)?val/all_imgs/([0-9]{1,9})/([0-9]{2})_[0-9]\.png")
_PKU_QUERY_CAMERA = 1
_MSMT_FOLDERS = ("test", "mask_test_v2")


@dataclass(frozen=True, eq=False)
class ReidSet:
    """Images of people in front of cameras.

    Attributes:
        layout: "market" (Duke too), "msmt17" or "pku".
        images: n images, labelled -1; junk is not among them.
        people: int64 [n]; in the gallery people nobody asks for are distractors.
        cameras: int64 [n].
        is_query: bool [n]; the others are the gallery.
        num_junk: images left out as junk.
    """

    layout: str
    images: ImageSet
    people: np.ndarray
    cameras: np.ndarray
    is_query: np.ndarray
    num_junk: int


@dataclass(frozen=True)
class _Sighting:
    path: str
    person: int
    camera: int
    is_query: bool


def layout_of(root: Path) -> str | None:
    """The layout of a folder or tar; None if it is none of them, or no folder or tar at all."""
    if root.is_dir() and (root / "list_query.txt").is_file():
        return "msmt17"
    if not (root.is_dir() or root.suffix == ".tar"):
        return None
    paths = paths_in(root)
    names = {match[1] for path in paths if (match := _MARKET.fullmatch(path))}
    if names == {"query", "bounding_box_test"}:
        return "market"
    return "pku" if any(_PKU.fullmatch(path) for path in paths) else None


def open_reid(path: str | os.PathLike[str], *, distractors: bool = False) -> ReidSet:
    """Open a set in one of the layouts above.

    Args:
        path: Its folder, or an uncompressed tar of it (MSMT17: folder only).
        distractors: Market-1501's 500,000 more gallery images of nobody, from its folder `images/`.

    Raises:
        ValueError: none of the layouts, a file whose name says no person or camera, or a malformed list.
    """
    root = Path(path)
    if not root.exists():
        raise ValueError(f"{root}: no such folder or tar")
    layout = layout_of(root)
    if layout is None:
        raise ValueError(
            f"{root}: no re-identification set; allowed: query/ and bounding_box_test/ (Market-1501,"
            " DukeMTMC-reID), list_query.txt (MSMT17), val/all_imgs/ (PKU-Reid)"
        )
    readers = {"market": _market, "msmt17": _msmt, "pku": _pku}
    found = readers[layout](root)
    if distractors:
        found = [*found, *_more(root, layout)]
    junk = sum(one.person == JUNK for one in found)
    kept = [one for one in found if one.person != JUNK]
    return _assembled(root, layout, kept, junk)


def _assembled(root: Path, layout: str, kept: Sequence[_Sighting], junk: int) -> ReidSet:
    is_query = np.array([one.is_query for one in kept], bool)
    if not is_query.any() or is_query.all():
        what = "gallery" if is_query.any() else "query"
        raise ValueError(f"{root}: no {what} images in it (read as {layout!r})")
    return ReidSet(
        layout,
        files_of(root, [one.path for one in kept], lambda _: str(root)),
        np.array([one.person for one in kept], np.int64),
        np.array([one.camera for one in kept], np.int64),
        is_query,
        junk,
    )


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _market(root: Path) -> list[_Sighting]:
    found = []
    for path in paths_in(root):
        match = _MARKET.fullmatch(path)
        if match is None or not _is_image(path):
            continue
        name = _MARKET_NAME.match(match[2])
        if name is None or int(name[1]) < JUNK:
            raise ValueError(f"{root}/{path}: a name that begins PERSON_cCAMERA expected")
        found.append(_Sighting(path, int(name[1]), int(name[2]), match[1] == "query"))
    return found


def _more(root: Path, layout: str) -> list[_Sighting]:
    """Nobody (person 0) in front of no camera (0)."""
    paths = [path for path in paths_in(root) if _MARKET_MORE.fullmatch(path) and _is_image(path)]
    if layout != "market" or not paths:
        raise ValueError(f"{root}: distractors: allowed with Market-1501's folder images/")
    return [_Sighting(path, 0, 0, False) for path in paths]


def _pku(root: Path) -> list[_Sighting]:
    matches = [match for path in paths_in(root) if (match := _PKU.fullmatch(path))]
    return [
        _Sighting(one[0], int(one[1]), int(one[2]), int(one[2]) == _PKU_QUERY_CAMERA)
        for one in matches
    ]


def _msmt(root: Path) -> list[_Sighting]:
    folders = [name for name in _MSMT_FOLDERS if (root / name).is_dir()]
    if len(folders) != 1:
        raise ValueError(f"{root}: one folder of {' or '.join(_MSMT_FOLDERS)} expected")
    found = []
    for name, is_query in (("list_query.txt", True), ("list_gallery.txt", False)):
        for number, line in enumerate(_lines(root / name), start=1):
            path, _, person = line.rpartition(" ")
            parts = path.rpartition("/")[2].split("_")
            named = len(parts) > 2 and re.fullmatch("[0-9]{1,4}", parts[2])
            if not named or not re.fullmatch("[0-9]{1,9}", person) or ".." in path.split("/"):
                raise ValueError(
                    f"{root / name}:{number}: 'path person' expected, the path's third field between"
                    f" underscores the camera, found {line[:80]!r}"
                )
            path = f"{folders[0]}/{path.removeprefix('/')}"
            found.append(_Sighting(path, int(person), int(parts[2]), is_query))
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: UTF-8 text expected: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
