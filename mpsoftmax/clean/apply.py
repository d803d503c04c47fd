"""A reviewed table becomes a view of the data set: checked line by line, and no image is copied."""

from collections.abc import Sequence
from pathlib import Path

from mpsoftmax.clean.finding import Finding, read_findings
from mpsoftmax.data.image_set import ImageSet, Subset
from mpsoftmax.data.view import write_view


def apply_table(table: str | Path, source: str | Path, images: ImageSet, out: str | Path) -> Subset:
    """Write OUT.view.json, which `open_images` and data.train open.

    An image that is dropped anywhere in the table is dropped, whatever else is said of it.

    Args:
        table: A findings.csv as `mpsoftmax clean` wrote it and a person changed it.
        source: How the set is opened.
        images: The set.
        out: A new file, *.view.json.

    Raises:
        ValueError: a line is not about this set, asks for what its kind has not, or contradicts another.
    """
    findings = read_findings(Path(table))
    for number, one in enumerate(findings, start=2):
        check_line(f"{table}: line {number}", one, images)
    drop = sorted({one.image for one in findings if one.action == "drop"})
    relabel: dict[int, int] = {}
    for one in findings:
        if one.action != "relabel" or one.image in drop:
            continue
        if relabel.setdefault(one.image, one.to_class) != one.to_class:
            raise ValueError(
                f"{table}: image {one.image_name} is relabelled to classes {relabel[one.image]} and "
                f"{one.to_class}; allowed: one of them"
            )
    merge = [(one.class_id, one.to_class) for one in findings if one.action == "merge"]
    return write_view(Path(out), source, images, drop=drop, relabel=relabel, merge=merge)


def check_line(where: str, one: Finding, images: ImageSet) -> None:
    """Raise ValueError unless a line names images and classes of the set as the set names them."""
    about_image = one.image >= 0
    allowed = ("drop", "relabel", "keep") if about_image else ("merge", "keep")
    if one.action not in allowed:
        raise ValueError(f"{where}: action {one.action}; allowed for it: {', '.join(allowed)}")
    if one.action in ("relabel", "merge") and one.to_class < 0:
        raise ValueError(f"{where}: {one.action} without to_class; allowed: a class of the set")
    named: Sequence[tuple[int, str]] = [(one.class_id, one.class_name)]
    if one.to_class >= 0:
        named = [*named, (one.to_class, one.to_class_name)]
    for number, name in named:
        known = 0 <= number < len(images.class_names)
        if not known or str(images.class_names[number]) != name:
            found = repr(str(images.class_names[number])) if known else "not there"
            raise ValueError(f"{where}: class {number} is {name!r}; in the data it is {found}")
    if not about_image:
        return
    if one.image >= len(images) or images.name(one.image) != one.image_name:
        found = images.name(one.image) if one.image < len(images) else "not there"
        raise ValueError(
            f"{where}: image {one.image} is {one.image_name}; in the data it is {found}"
        )
    if int(images.labels[one.image]) != one.class_id:
        raise ValueError(
            f"{where}: {one.image_name} has class {one.class_id}; in the data it has "
            f"{int(images.labels[one.image])}"
        )
