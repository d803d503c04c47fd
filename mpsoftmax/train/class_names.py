"""RUN/classes.txt: the names of a run's classes, one a line in class order, for a later run to find its own.

Line breaks and backslashes of a name are escaped. Sets whose classes are only numbered get no such file:
their numbers say nothing about another set's. Nor do sets of more than 32 million classes: who needs their
names writes them.
"""

from collections.abc import Sequence
from pathlib import Path

from mpsoftmax.data.new_files import replaced
from mpsoftmax.data.string_table import NumberNames, StringTable

NAMES_FILE = "classes.txt"
MOST_NAMES = 1 << 25
ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"))


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Write the file where there is none; it appears complete or not at all."""
    path = folder / NAMES_FILE
    if path.exists() or isinstance(names, NumberNames) or len(names) > MOST_NAMES:
        return
    with (
        replaced(path) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        file.writelines(f"{escaped(name)}\n" for name in names)


def read_names(checkpoint: Path, num_classes: int) -> Sequence[str]:
    """Names of the classes of a run, given one of its checkpoint directories.

    Raises:
        ValueError: there are none, or not as many as the checkpoint has classes.
    """
    path = checkpoint.parent.parent / NAMES_FILE
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read: {error.strerror}; allowed: a run that knows the names of its classes, "
            "one a line in class order"
        ) from error
    names = StringTable(map(unescaped, text.split("\n")[:-1]))
    if len(names) != num_classes:
        raise ValueError(f"{path}: {len(names)} names; the checkpoint has {num_classes} classes")
    return names


def escaped(name: str) -> str:
    """A name on one line."""
    for plain, code in ESCAPES:
        name = name.replace(plain, code)
    return name


def unescaped(line: str) -> str:
    """What `escaped` was given."""
    if "\\" not in line:
        return line
    parts = line.split("\\\\")
    for plain, code in ESCAPES[1:]:
        parts = [part.replace(code, plain) for part in parts]
    return "\\".join(parts)
