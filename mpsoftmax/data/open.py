"""Opening a set of labelled images by its name."""

from pathlib import Path
from typing import Any

from mpsoftmax.data.arrow import open_arrow
from mpsoftmax.data.folder import open_folder, open_tar
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.record_images import open_records
from mpsoftmax.data.view import SUFFIX, open_view

_FILES = {".tar": open_tar, ".rec": open_records, ".arrow": open_arrow}
_ALLOWED = (
    "'glyphs', 'synthetic', a folder with a folder per class, a folder with train.rec,"
    " *.tar, *.rec, *.arrow, *.view.json"
)


def open_images(spec: str | Path, **options: Any) -> ImageSet:
    """Open a set of labelled images.

    Args:
        spec: ``glyphs``, ``synthetic``, or a path: a folder per class (or a folder that holds
            ``train.rec``), ``*.tar``, ``*.rec``, ``*.arrow``, or a ``*.view.json`` of one. A folder
            of the name ``glyphs`` is written ``./glyphs``.
        **options: What the format takes: ``under`` for folder and tar, ``allow_unindexed`` for
            .rec; ``glyphs`` and ``synthetic`` have their own.

    Raises:
        ValueError: Nothing of that name, an unknown format, or a malformed file.
    """
    if spec == "glyphs":
        from mpsoftmax.data.glyphs import open_glyphs

        return open_glyphs(**options)
    if spec == "synthetic":
        from mpsoftmax.data.synthetic import Synthetic

        return Synthetic(**options)
    path = Path(spec)
    if path.is_dir():
        record = path / "train.rec"
        if record.exists():
            return open_records(record, **options)
        return open_folder(path, **options)
    if not path.exists():
        raise ValueError(f"data {str(spec)!r}: no such file or folder; expected {_ALLOWED}")
    if path.name.endswith(SUFFIX):
        return open_view(path, **options)
    if path.suffix.lower() not in _FILES:
        raise ValueError(f"data {str(spec)!r}: unknown format; expected {_ALLOWED}")
    return _FILES[path.suffix.lower()](path, **options)
