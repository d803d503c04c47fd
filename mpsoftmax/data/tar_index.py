"""Where the members of a tar archive lie, from its headers alone.

Python's ``tarfile`` stops without a word at a damaged header in the middle of an archive, which
would silently shorten a data set, and has looped on negative sizes. Formats: POSIX ustar and pax,
GNU (long names, base-256 sizes), and the old v7.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from mpsoftmax.data.positional_file import PositionalFile
from mpsoftmax.data.string_table import StringTable

BLOCK = 512
# Long names and pax records are small; a larger size is damage, and would be read into memory.
MAX_EXTENSION_BYTES = 1 << 20
_FILE_TYPES = (b"0", b"\0", b"7")
_EXTENSION_TYPES = (b"L", b"K", b"x", b"g")
_SKIPPED_TYPES = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "pipe",
    b"S": "sparse file",
    b"D": "dump directory",
    b"M": "continued volume",
    b"V": "volume label",
}
_PACKED = {
    "gzip": (0, b"\x1f\x8b\x08"),
    "bzip2": (4, b"1AY&SY"),  # behind BZh and a digit, with which a member's name may begin
    "xz": (0, b"\xfd7zXZ\0"),
    "zstd": (0, b"\x28\xb5\x2f\xfd"),
}
"""Where the mark of a compressed file lies, and the mark."""


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Regular files of an archive in the order they lie.

    Attributes:
        names: Member names; a leading ``./`` is removed.
        offsets: int64 [n], bytes from the start of the archive to the member's content.
        sizes: int64 [n], bytes of content.
        problems: Members that are no regular files.
    """

    names: StringTable
    offsets: np.ndarray
    sizes: np.ndarray
    problems: tuple[str, ...]


def index_tar(file: PositionalFile) -> TarIndex:
    """Read every header of an uncompressed tar once.

    Raises:
        ValueError: Not a tar, compressed, damaged, or truncated; names the file, the offset and what was
            expected there. An archive without its end mark (a block of zeros) counts as truncated.
    """
    names: list[str] = []
    offsets, sizes = array("q"), array("q")
    problems: list[str] = []
    extension: dict[str, str] = {}
    offset = 0
    _check_unpacked(file)
    while True:
        block = file.read(offset, BLOCK, "tar header (or of the end mark, a block of zeros)")
        if not any(block):
            break
        where = f"{file.path}: tar header at offset {offset}"
        _check_sum(block, where, offset)
        kind, size = block[156:157], _number(block[124:136], f"{where}: size")
        content = offset + BLOCK
        if kind in _EXTENSION_TYPES:
            extension |= _extension(file, content, size, kind, where)
        else:
            size = _whole(extension["size"], f"{where}: pax size") if "size" in extension else size
            _check_content(file, content, size, where)
            name = extension.get("path", _name(block)).removeprefix("./")
            what = _not_a_file(kind, name, extension)
            if what is None:
                names.append(name)
                offsets.append(content)
                sizes.append(size)
            elif what:
                problems.append(f"{name}: {what}, not used")
            extension = {}
        offset = content + -(-size // BLOCK) * BLOCK
    _check_tail(file, offset)
    if extension:
        raise ValueError(f"{file.path}: extended header without a member before offset {offset}")
    return TarIndex(
        StringTable(names),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        tuple(problems),
    )


def _check_unpacked(file: PositionalFile) -> None:
    head = file.read(0, min(file.size, 16), "tar header")
    for name, (start, mark) in _PACKED.items():
        if head[start:].startswith(mark):
            raise ValueError(f"{file.path}: compressed with {name}; allowed: an uncompressed tar")


def _not_a_file(kind: bytes, name: str, extension: dict[str, str]) -> str | None:
    """None for a regular file, "" for a folder, else what the member is."""
    if any(key.startswith("GNU.sparse") for key in extension):
        kind = b"S"
    if kind == b"5" or (kind in _FILE_TYPES and name.endswith("/")):
        return ""
    if kind in _FILE_TYPES:
        return None
    return _SKIPPED_TYPES.get(kind, f"member of unknown type {kind!r}")


def _check_content(file: PositionalFile, content: int, size: int, where: str) -> None:
    if content + size > file.size:
        raise ValueError(
            f"{where}: content of {size} bytes expected, but the file ends after"
            f" {file.size - content}"
        )


def _check_sum(block: bytes, where: str, offset: int) -> None:
    stated = _number(block[148:156], f"{where}: checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    high_bytes = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in block[148:156])
    if stated not in (unsigned, unsigned - 256 * high_bytes):  # some old tars summed signed bytes
        hint = " (is it a tar? a compressed one must be unpacked first)" if offset == 0 else ""
        raise ValueError(f"{where}: checksum {stated} expected, {unsigned} found{hint}")


def _number(field: bytes, where: str) -> int:
    """A numeric header field: octal text, or GNU base-256 marked by the top bit."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not digits or digits.strip(b"01234567"):
        raise ValueError(f"{where}: octal number expected, found {field!r}")
    return int(digits, 8)


def _whole(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise ValueError(f"{where}: decimal number expected, found {text[:40]!r}")
    return int(text)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    # GNU tar keeps other fields where POSIX has the prefix.
    return f"{prefix}/{name}" if block[257:263] == b"ustar\0" and prefix else name


def _extension(
    file: PositionalFile, offset: int, size: int, kind: bytes, where: str
) -> dict[str, str]:
    """What an extended header says about the next member: ``path``, ``size``, sparse marks."""
    if size > MAX_EXTENSION_BYTES:
        raise ValueError(
            f"{where}: extended header of {size} bytes, expected at most {MAX_EXTENSION_BYTES}"
        )
    data = file.read(offset, size, "extended tar header")
    if kind == b"L":
        return {"path": _text(data)}
    if kind == b"K":
        return {}
    fields = _pax(data, where)
    if kind == b"g" and fields.keys() & {"path", "size"}:
        raise ValueError(f"{where}: global path or size, expected them in single members only")
    return {} if kind == b"g" else fields


def _pax(data: bytes, where: str) -> dict[str, str]:
    """Parse pax records: ``length key=value`` and LF, the length counting the whole record."""
    fields: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start]:
        space = data.find(b" ", start, start + 20)
        length = _whole(data[start : max(space, start)].decode("latin-1"), f"{where}: pax length")
        record = data[space + 1 : start + length]
        key, equals, value = record[:-1].partition(b"=")
        if start + length > len(data) or record[-1:] != b"\n" or not equals:
            raise ValueError(f"{where}: pax record 'length key=value' expected at byte {start}")
        fields[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        start += length
    return fields


def _check_tail(file: PositionalFile, offset: int) -> None:
    """Refuse content behind the end mark: archives joined with ``cat`` would lose images."""
    while offset < file.size:
        length = min(1 << 20, file.size - offset)
        if any(file.read(offset, length, "padding")):
            raise ValueError(
                f"{file.path}: zeros expected after the end mark, found content after offset"
                f" {offset} (joined archives? read them one by one)"
            )
        offset += length
