"""For the site: a link to a file outside docs/ becomes its name, after a look that it is there."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with every page.

    Raises:
        FileNotFoundError: a link to a file that is not there; with `--strict` and without.
    """
    folder = (DOCS / page.file.src_uri).parent

    def without(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]  # mkdocs itself looks
        if not target.exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri}: {link[0]}: no such file")
        name = target.relative_to(DOCS.parent).as_posix()
        text = link[1].strip("`")
        return f"`{name}`" if text in (name, target.name) else f"{link[1]} (`{name}`)"

    return LINK.sub(without, markdown)
