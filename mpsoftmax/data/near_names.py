"""What a missing file may have been meant to be."""

import difflib
import os
from pathlib import Path


def near_name(path: str | os.PathLike[str]) -> str:
    """``; did you mean X?`` where the folder of a missing path holds something of nearly that name, else "".

    A path whose folder is missing too is answered for the first part that does not exist.
    """
    missing = Path(path)
    while missing.parent != missing and not missing.parent.is_dir():
        missing = missing.parent
    try:
        names = os.listdir(missing.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, names, n=1)
    if not near:
        lower = {name.lower(): name for name in names}
        same_stem = [name for name in names if Path(name).stem == missing.name]
        near = [lower[missing.name.lower()]] if missing.name.lower() in lower else same_stem
    return f"; did you mean {str(missing.with_name(near[0]))!r}?" if near else ""
