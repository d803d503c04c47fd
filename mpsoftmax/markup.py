"""HTML and SVG from Python: everything is escaped unless it was built here."""

import html
import re
from collections.abc import Iterable

VOID = frozenset({"img", "meta", "link", "br", "hr", "input"})
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Markup | None | Iterable["Child"]


def escaped(text: str) -> Markup:
    """Text as it may stand in an element or an attribute; what no XML may hold becomes U+FFFD."""
    return Markup(html.escape(CONTROL.sub("\ufffd", text), quote=True))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element, well-formed as HTML and as XML.

    Args:
        name: Of the element.
        children: Text (escaped), markup, None (nothing), or lists of these.
        attributes: Their values are escaped; ``class_`` is class, ``stroke_width`` stroke-width; None and
            False leave an attribute out, True gives it its own name.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        words.append(f'{attribute}="{escaped(attribute if value is True else str(value))}"')
    if name in VOID:
        return Markup(f"<{' '.join(words)} />")
    return Markup(f"<{' '.join(words)}>{joined(children)}</{name}>")


def joined(children: Child) -> Markup:
    """Children one after the other."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return escaped(children)
    return Markup("".join(joined(child) for child in children))
