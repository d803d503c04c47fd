"""docs/errors.md quotes messages that the package has."""

import ast
import re

import pytest
from documents import ROOT

ROWS = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.M)


def templates() -> str:
    """Every string of the package with `…` for what is put in, a line each."""
    found = []
    for path in [*(ROOT / "mpsoftmax").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


TEMPLATES = templates()


@pytest.mark.parametrize("message", ROWS)
def test_a_message_is_one_of_ours(message):
    pieces = [piece.strip() for piece in message.split("…")]
    assert max(map(len, pieces)) >= 6
    pattern = ".*".join(re.escape(piece) for piece in pieces)
    assert re.search(pattern, TEMPLATES), message


def test_there_are_messages():
    assert len(ROWS) > 25
