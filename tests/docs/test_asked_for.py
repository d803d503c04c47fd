"""docs/asked_for.md names tests that exist."""

import re

import pytest
from documents import ROOT

TEXT = (ROOT / "docs" / "asked_for.md").read_text()
TESTS = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?` \|$", TEXT, re.M)
COMMANDS = re.findall(r"`(mpsoftmax [^`]+)` \|", TEXT)


def test_fifteen():
    assert len(TESTS) == len(COMMANDS) == 15


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_a_named_test_exists(path, name):
    code = (ROOT / path).read_text()
    assert re.search(rf"^def {name or 'test_'}", code, re.M)
