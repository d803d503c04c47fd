"""The findings as pictures: one HTML file that needs nothing beside it."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mpsoftmax.clean.finding import KINDS, Finding
from mpsoftmax.data.decode import CorruptImage, decode, original_size
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.new_files import new_files
from mpsoftmax.markup import Markup, tag

SIDE, EXAMPLES, SHOWN = 88, 4, 60
TITLES = {
    "label": "Images that do not fit their class",
    "two_clusters": "Classes that fall into two parts",
    "near_duplicate": "Images that are nearly the same picture",
    "identity": "Classes that are likely one identity",
}
STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}
body{color:#222;background:#fff}
article{border-top:1px solid #ccc;padding:.6em 0;display:flex;gap:1.2em;flex-wrap:wrap;align-items:flex-start}
figure{margin:0}figcaption{font-size:12px;max-width:26em;overflow-wrap:anywhere;color:#555}
img{display:inline-block;background:#eee}p{flex-basis:100%;margin:0}
.drop{color:#a40000}.relabel{color:#8a5a00}.merge{color:#00529b}.keep{color:#555}
"""


def write_page(
    path: Path, images: ImageSet, findings: Sequence[Finding], shown: int = SHOWN
) -> None:
    """Write the contact sheet.

    Args:
        path: A new .html file.
        images: The set the findings are about.
        findings: By kind, the most suspicious first.
        shown: Findings of each kind that get pictures.
    """
    order = np.argsort(images.labels, kind="stable")
    sorted_labels = images.labels[order]
    body: list[Markup] = []
    for kind in KINDS:
        some = [one for one in findings if one.kind == kind]
        body.append(tag("h2", f"{TITLES[kind]}: {len(some)}"))
        if len(some) > shown:
            body.append(tag("p", f"The first {shown}; the table has all."))
        body += [article(images, one, order, sorted_labels) for one in some[:shown]]
    advice = tag(
        "p",
        (
            "Suggestions, not facts. Change the column ",
            tag("code", "action"),
            " of findings.csv, or ",
        ),
        ("delete lines, then ", tag("code", "mpsoftmax clean --apply"), "."),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", "mpsoftmax clean"),
        tag("style", Markup(STYLE)),
    )
    page = tag("html", head, tag("body", tag("h1", "For review"), advice, body), lang="en")
    with new_files(path) as (temporary,):
        temporary.write_text(f"<!doctype html>{page}\n", encoding="utf-8")


def article(images: ImageSet, one: Finding, order: np.ndarray, sorted_labels: np.ndarray) -> Markup:
    """One finding: its image, and some of the classes it is about."""

    def members(label: int) -> list[int]:
        low, high = np.searchsorted(sorted_labels, [label, label + 1])
        return [int(k) for k in order[low:high] if k not in (one.image, one.other_image)]

    action = tag("b", one.action, class_=one.action)
    head = tag("p", action, f" score {one.score:.3f}; {one.evidence}")
    figures = []
    if one.image >= 0:
        figures.append(figure(images, [one.image], one.image_name))
    if one.other_image >= 0:
        figures.append(figure(images, [one.other_image], images.name(one.other_image)))
    else:
        many = 12 if one.kind == "two_clusters" else EXAMPLES
        figures.append(figure(images, members(one.class_id)[:many], f"class {one.class_name}"))
        if one.to_class >= 0:
            other = members(one.to_class)[:EXAMPLES]
            figures.append(figure(images, other, f"class {one.to_class_name}"))
    return tag("article", head, figures)


def figure(images: ImageSet, chosen: Sequence[int], caption: str) -> Markup:
    """Pictures in a row, and what they are."""
    pictures = [picture(images, index) for index in chosen]
    return tag("figure", pictures, tag("figcaption", caption))


def picture(images: ImageSet, index: int) -> Markup:
    """An image as an <img> that holds its bytes, at most SIDE pixels high and twice as wide."""
    name, image = images.name(index), images.image(index)
    try:
        pixels = image if isinstance(image, np.ndarray) else decode(image, original_size(image))
    except CorruptImage:
        return tag("span", "(not an image)", title=name)
    small = Image.fromarray(pixels)
    small.thumbnail((2 * SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    return tag("img", width=small.width, height=small.height, alt=name, title=name, src=source)
