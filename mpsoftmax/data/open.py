"""Opening a set of labelled images by its name."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpsoftmax.data.arrow import open_arrow
from mpsoftmax.data.folder import IMAGE_SUFFIXES, open_folder
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.near_names import near_name
from mpsoftmax.data.parquet import open_parquet
from mpsoftmax.data.path_lists import SUFFIXES as LIST_SUFFIXES
from mpsoftmax.data.path_lists import open_path_list
from mpsoftmax.data.record_images import open_records
from mpsoftmax.data.shards import expand, is_pattern, parquet_shards, top_files
from mpsoftmax.data.tars import open_tars
from mpsoftmax.data.view import SUFFIX as VIEW_SUFFIX
from mpsoftmax.data.view import open_view

ALLOWED = (
    "'glyphs', 'synthetic', a folder with a folder per class, a folder with train.rec or of .parquet or .tar"
    " shards, *.tar, *.rec, *.arrow, *.parquet, *.view.json, a list of paths (.txt, .lst, .tsv, .csv; or"
    " LIST@FOLDER-OR-TAR), a pattern such as 'shard-{000..099}.tar' or 'train-*.parquet'"
)

_PACKED_TARS = (".tgz", ".tbz2", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

_OPTIONS: dict[Callable[..., ImageSet], tuple[str, ...]] = {
    open_folder: ("under",),
    open_tars: ("under", "layout", "label_key"),
    open_records: ("allow_unindexed",),
    open_arrow: (),
    open_parquet: ("image_column", "label_column", "cache_groups"),
    open_path_list: ("dialect", "label_column"),
}
"""What each format's reader can be told."""
_TYPES: dict[str, tuple[type, ...]] = {
    "allow_unindexed": (bool,),
    "cache_groups": (int,),
    "label_column": (str, int),
}
"""Of an option's value, where that is no text."""
_OWN = ("check", "loose")
"""What commands ask of a reader, and users do not."""


def open_images(spec: str | Path, **options: Any) -> ImageSet:
    """Open a set of labelled images.

    Args:
        spec: ``glyphs``, ``synthetic``, or a path: a folder per class, a folder that holds
            ``train.rec`` or shards, ``*.tar``, ``*.rec``, ``*.arrow``, ``*.parquet``, a list of paths, a
            pattern of shards, or a ``*.view.json`` of one of these. A folder of the name ``glyphs``
            is written ``./glyphs``.
        **options: What the format takes: ``under`` for folder, tar and the split of a Parquet
            folder, ``allow_unindexed`` for .rec, ``layout`` and ``label_key`` for tars, ``dialect`` and
            ``label_column`` for lists, ``image_column`` and ``label_column`` for Parquet, ``check``
            for what can hold a label out of range, ``loose`` for folder and tar, as `open_folder` has it;
            ``glyphs`` and ``synthetic`` have their own.

    Raises:
        ValueError: Nothing of that name, an unknown format or option, or a malformed file.
    """
    if spec in ("glyphs", "synthetic"):
        return _open_made(str(spec), options)
    path = Path(spec)
    try:
        if path.is_dir():
            return _open_folder(path, options)
        if path.exists():
            return _open_file(path, options)
    except PermissionError as error:
        raise ValueError(
            f"data {str(spec)!r}: cannot be read: {error.strerror}: {error.filename}"
        ) from error
    return _open_other(str(spec), path, options)


def refuse_own(options: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for an option that is not a user's to give."""
    for key in _OWN:
        if key in options:
            raise ValueError(f"{where}: {key}={options[key]!r} is no option of a reader")


def _open_made(spec: str, options: dict[str, Any]) -> ImageSet:
    """Images that are no files."""
    from mpsoftmax.data.glyphs import open_glyphs
    from mpsoftmax.data.synthetic import Synthetic

    make: Callable[..., ImageSet] = open_glyphs if spec == "glyphs" else Synthetic
    chosen = {key: value for key, value in options.items() if key not in _OWN}
    allowed = tuple(inspect.signature(make).parameters)
    for key in chosen:
        if key not in allowed:
            raise ValueError(
                f"data {spec!r}: {key}={chosen[key]!r} is no option of it; allowed: {', '.join(allowed)}"
            )
    return make(**chosen)


def listed(spec: str) -> bool:
    """Whether a name is that of a list of paths, with or without its folder or tar."""
    return Path(spec.partition("@")[0]).suffix.lower() in LIST_SUFFIXES


def _open_folder(path: Path, options: dict[str, Any]) -> ImageSet:
    """A folder by what lies directly in it."""
    record = path / "train.rec"
    if record.exists():
        return _call(open_records, str(path), record, **options)
    files, folders = top_files(path)
    if options.get("loose") and _with_suffix(
        files, *IMAGE_SUFFIXES
    ):  # photos, whatever lies beside
        return _call(open_folder, str(path), path, **options)
    tables = _with_suffix(files, ".parquet")
    if not tables and [one.name for one in folders] == [
        "data"
    ]:  # as a repository of the hub has it
        within, _ = top_files(folders[0])
        if _with_suffix(within, ".parquet"):
            return _open_folder(folders[0], options)
    if tables and not folders:
        under = options.pop("under", "")
        return _call(open_parquet, str(path), parquet_shards(path, under), **options)
    tars = _with_suffix(files, ".tar")
    if tars and not folders:
        return _call(open_tars, str(path), tars, **options)
    single = _with_suffix(files, ".rec", ".arrow")
    if single and not folders:
        raise ValueError(
            f"data {str(path)!r}: neither class folders nor train.rec in it; did you mean {str(single[0])!r}?"
        )
    return _call(open_folder, str(path), path, **options)


def _open_file(path: Path, options: dict[str, Any]) -> ImageSet:
    """A file by its suffix."""
    suffix, text = path.suffix.lower(), str(path)
    if path.name.endswith(VIEW_SUFFIX):
        return open_view(path, **options)
    if suffix == ".tar":
        return _call(open_tars, text, [path], **options)
    if suffix == ".rec":
        return _call(open_records, text, path, **options)
    if suffix == ".arrow":
        return _call(open_arrow, text, path, **options)
    if suffix == ".parquet":
        return _call(open_parquet, text, [path], **options)
    if suffix in LIST_SUFFIXES:
        return _call(open_path_list, text, path, **options)
    if path.name.lower().endswith(_PACKED_TARS):
        raise ValueError(
            f"data {text!r}: a compressed tar; allowed: an uncompressed one, whose images are read in place"
        )
    raise ValueError(f"data {text!r}: unknown format; expected {ALLOWED}")


def _open_other(spec: str, path: Path, options: dict[str, Any]) -> ImageSet:
    """What is no path as it stands: a pattern, or a list with its folder or tar."""
    if is_pattern(spec):
        paths = expand(spec)
        suffixes = {one.suffix.lower() for one in paths}
        if suffixes == {".parquet"}:
            return _call(open_parquet, spec, paths, **options)
        if suffixes == {".tar"}:
            return _call(open_tars, spec, paths, **options)
        raise ValueError(
            f"data {spec!r}: files {', '.join(sorted(suffixes))}; allowed for a pattern: .tar or .parquet"
        )
    listed, at, holder = spec.partition("@")
    if at and Path(listed).is_file():
        _check_options(open_path_list, spec, options)
        options.pop("loose", None)
        return open_path_list(Path(listed), Path(holder), **options)
    raise ValueError(
        f"data {spec!r}: no such file or folder{near_name(listed if at else path)}; expected {ALLOWED}"
    )


def _with_suffix(files: list[Path], *suffixes: str) -> list[Path]:
    return [path for path in files if path.suffix.lower() in suffixes]


def _check_options(reader: Callable[..., ImageSet], spec: str, options: dict[str, Any]) -> None:
    """Refuse an option that a format does not have."""
    taken = _OPTIONS[reader]
    strange = sorted(set(options) - {*taken, *_OWN})
    if strange:
        raise ValueError(
            f"data {spec!r}: {strange[0]}={options[strange[0]]!r} is no option of this format; allowed: "
            f"{', '.join(taken) or 'none'}"
        )
    for key in set(options) & set(taken):
        kinds, value = _TYPES.get(key, (str,)), options[key]
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if value is not None and not fits:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"data {spec!r}: {key}={value!r}; allowed: {names}")


def _call(reader: Callable[..., ImageSet], spec: str, place: Any, **options: Any) -> ImageSet:
    """Open, after a look at the options."""
    _check_options(reader, spec, options)
    if reader is open_folder:  # it numbers the classes itself and has no label to check
        options.pop("check", None)
    elif reader is not open_tars:
        options.pop("loose", None)
    return reader(place, **options)
