"""What became of a config, as a table for people."""

from collections.abc import Sequence

from mpsoftmax.migrate.translation import Row, shown


def as_table(rows: Sequence[Row]) -> str:
    """Two parts: what became what; and, last and loudest, what has no counterpart."""
    became = [row for row in rows if row.becomes]
    # A switch that is off, or a name that is not set, asks for nothing.
    lost = [row for row in rows if not row.becomes and row.value not in (False, None)]
    lines = ["arcface_torch -> mpsoftmax"]
    for row in became:
        lines.append(f"  {named(row):40} {row.becomes}")
        lines += [f"  {'':40}   ({row.note})"] if row.note else []
    if lost:
        lines.append(f"NO COUNTERPART: {len(lost)} keys")
        lines += [f"  {named(row):40} {row.note}" for row in lost]
    return "\n".join(lines)


def named(row: Row) -> str:
    """The key and its value."""
    return row.key if row.value == "" else f"{row.key} = {shown(row.value)}"
