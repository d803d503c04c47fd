"""Rendered glyph sets on disk: rendered once, then memory-mapped by every process that reads them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpsoftmax.data.fonts import read_faces
from mpsoftmax.data.glyph_render import (
    EM_MIDDLE,
    EM_SHARE,
    MAX_CORRELATION,
    merge_families,
    render_faces,
)

CACHE_VARIABLE = "MPSOFTMAX_CACHE"
# Part of the key of a set: to be raised with every change that alters pixels, filters or families.
_RENDERING = 1


@dataclass(frozen=True)
class Rendered:
    """A rendered set, sorted by code point, then by face.

    Attributes:
        images_file: .npy file, uint8 [n, size, size], ink 255 on 0.
        code_points: int32 [n].
        faces: int32 [n], index into `face_names`.
        face_names: PostScript names.
        face_families: family of each face, as to be kept on one side of a split.
        problems: files, faces and map entries that were left out, one sentence each.
        num_dropped: images dropped, by reason.
    """

    images_file: Path
    code_points: np.ndarray
    faces: np.ndarray
    face_names: tuple[str, ...]
    face_families: tuple[str, ...]
    problems: tuple[str, ...]
    num_dropped: dict[str, int]


def default_cache_dir() -> Path:
    """The folder named by the environment variable MPSOFTMAX_CACHE, else ~/.cache/mpsoftmax."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mpsoftmax").expanduser()


def rendered_glyphs(
    files: Sequence[Path],
    *,
    code_points: np.ndarray | None,
    min_fonts: int,
    size: int,
    cache_dir: Path,
) -> Rendered:
    """The rendered characters of font files, from the cache if they were rendered before.

    Several processes may ask at once: each renders, the first to finish is kept.

    Args:
        files: font files; of duplicate images the one of the first file stays.
        code_points: int [m], characters wanted; None for all that the fonts map.
        min_fonts: characters with fewer different images than this are left out.
        size: height and width of an image in pixels.
        cache_dir: folder of the cache; a set takes size * size bytes an image.

    Returns:
        The set. It may be empty.

    Raises:
        ValueError: `cache_dir` cannot be written.
    """
    folder = cache_dir / f"glyphs-{_key(files, code_points, min_fonts, size)}"
    if not folder.is_dir():
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".glyphs-", dir=cache_dir))
        except OSError as error:
            raise ValueError(
                f"cache_dir: cannot write to {str(cache_dir)!r} ({error}); set cache_dir or the"
                f" environment variable {CACHE_VARIABLE} to a folder that can be written"
            ) from error
        try:
            _render_into(temporary, files, code_points, min_fonts, size)
            _commit(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _read(folder)


def _key(files: Sequence[Path], code_points: np.ndarray | None, min_fonts: int, size: int) -> str:
    """Hash of everything the pixels depend on."""
    import PIL
    from PIL import features

    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    wanted = None if code_points is None else hashlib.sha256(code_points.tobytes()).hexdigest()
    versions = (_RENDERING, PIL.__version__, features.version("freetype2"))
    constants = (EM_SHARE, EM_MIDDLE, MAX_CORRELATION)
    key = json.dumps([versions, constants, stats, wanted, min_fonts, size])
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _render_into(
    folder: Path,
    files: Sequence[Path],
    code_points: np.ndarray | None,
    min_fonts: int,
    size: int,
) -> None:
    faces, problems = read_faces(files)
    glyphs, num_dropped = render_faces(faces, code_points, min_fonts, size)
    meta = {
        "face_names": [face.name for face in faces],
        "face_families": merge_families(glyphs, [face.family for face in faces]),
        "problems": problems,
        "num_dropped": num_dropped,
    }
    np.save(folder / "images.npy", glyphs.images)
    np.save(folder / "index.npy", np.stack([glyphs.code_points, glyphs.faces]))
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _commit(temporary: Path, folder: Path) -> None:
    """One rename makes the whole set visible; another process may have been first."""
    try:
        os.replace(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise


def _read(folder: Path) -> Rendered:
    index = np.load(folder / "index.npy")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return Rendered(
        images_file=folder / "images.npy",
        code_points=index[0],
        faces=index[1],
        face_names=tuple(meta["face_names"]),
        face_families=tuple(meta["face_families"]),
        problems=tuple(meta["problems"]),
        num_dropped=meta["num_dropped"],
    )
