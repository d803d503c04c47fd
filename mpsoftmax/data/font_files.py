"""Installed font files: named by the user, carried by matplotlib, found in the system's folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

OUTLINE_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Formats that font folders hold, but that carry fixed-size bitmaps or no Unicode character map.
OTHER_SUFFIXES = (".pcf", ".pcf.gz", ".bdf", ".pfa", ".pfb", ".woff", ".woff2")


def font_files(
    fonts: Sequence[str | Path] = (), *, use_matplotlib: bool = True, use_system: bool = True
) -> list[Path]:
    """Font files in reading order: named ones first, then matplotlib's, then the system's.

    Args:
        fonts: files, or folders searched with their subfolders.
        use_matplotlib: add the fonts matplotlib carries.
        use_system: add the fonts of the usual system and user folders.

    Returns:
        Paths without repetition (links resolved), of outline and of other font formats.

    Raises:
        ValueError: a name in `fonts` is neither a file nor a folder, or matplotlib is missing.
    """
    files: list[Path] = []
    for entry in fonts:
        path = Path(entry).expanduser()
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            files += _walk(path)
        else:
            raise ValueError(f"fonts: {str(entry)!r} is neither a font file nor a folder")
    if use_matplotlib:
        files += _walk(_matplotlib_fonts())
    if use_system:
        for folder in system_folders():
            files += _walk(folder)
    return list(dict.fromkeys(file.resolve() for file in files))


def system_folders() -> list[Path]:
    """Folders in which Linux, macOS and Windows keep fonts, those that exist here."""
    home = Path.home()
    data_home = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    windows = Path(os.environ.get("WINDIR") or "C:/Windows")
    folders = [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        data_home / "fonts",
        home / ".fonts",
        Path("/System/Library/Fonts"),
        Path("/Library/Fonts"),
        home / "Library" / "Fonts",
        windows / "Fonts",
    ]
    return [folder for folder in folders if folder.is_dir()]


def _matplotlib_fonts() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(
            "use_matplotlib_fonts: matplotlib is not installed (pip install matplotlib)"
        ) from error
    return Path(matplotlib.get_data_path()) / "fonts"


def _walk(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(OUTLINE_SUFFIXES + OTHER_SUFFIXES) and path.is_file()
    )
