"""Tars: a folder per class in one archive, or WebDataset shards. Which of them, their content says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpsoftmax.data.folder import IMAGE_SUFFIXES, TarImages, open_tar
from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.tar_index import TarIndex, index_tar
from mpsoftmax.data.webdataset import ShardImages, labelled_samples, open_webdataset

LAYOUTS = ("auto", "folders", "webdataset")


def open_tars(
    paths: Sequence[Path],
    *,
    under: str = "",
    layout: str = "auto",
    loose: bool = False,
    **options: Any,
) -> TarImages | ShardImages:
    """Open one tar with a folder per class, or one or several WebDataset shards.

    Args:
        paths: The tars, in order.
        under: A folder inside a tar of class folders.
        layout: ``folders``, ``webdataset``, or ``auto``: WebDataset where every image of the first tar has a
            ``.cls`` or ``.json`` of its name beside it, folders where none has.
        loose: As for `open_tar`.
        **options: As ``open_webdataset``.

    Raises:
        ValueError: Some images have a label file and others have none, or the layout does not fit what
            was asked of it; or as the readers.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r}; allowed: {', '.join(LAYOUTS)}")
    index = None if layout == "webdataset" else index_tar(PositionalFile(paths[0]))
    chosen = _layout(paths[0], index, loose) if layout == "auto" and index else layout
    if chosen == "webdataset":
        if under:
            raise ValueError(
                f"{paths[0]}: under={under!r} is for class folders, and this is a WebDataset: its images "
                "have .cls or .json beside them"
            )
        return open_webdataset(paths, **options)
    options.pop("check", None)
    if len(paths) > 1:
        raise ValueError(
            f"{paths[0]}: no .cls or .json beside its images; allowed: several tars as WebDataset shards, or "
            "one tar with a folder per class (list several as datasets: data.train=[a.tar, b.tar])"
        )
    if options:
        raise ValueError(
            f"{paths[0]}: {', '.join(options)} given, which a folder per class does not have"
        )
    return open_tar(paths[0], under, index, loose=loose)


def _layout(path: Path, index: TarIndex, loose: bool) -> str:
    """Told from the names in an archive.

    Raises:
        ValueError: Some of its images have a label file and others have none.
    """
    labelled, without, example = labelled_samples(index)
    if labelled and not without:
        return "webdataset"
    in_folders = any("/" in name and name.lower().endswith(IMAGE_SUFFIXES) for name in index.names)
    if labelled:
        raise ValueError(
            f"{path}: {labelled} images have a .cls or .json of their name, {without} have none (such as "
            f"{example}); allowed: one for every image (WebDataset), or none. layout=folders takes the "
            "folders as classes"
        )
    if without and not in_folders and not loose:
        raise ValueError(
            f"{path}: images neither in class folders nor with a .cls or .json of their name beside them "
            f"(such as {example})"
        )
    return "folders"
