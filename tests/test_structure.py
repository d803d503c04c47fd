"""Rules of the tree that no linter checks."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def test_kernels_know_nothing_of_the_package_around_them():
    """kernels/ has no __init__.py, so import-linter does not see it."""
    files = list((ROOT / "kernels").glob("*.py"))
    assert len(files) >= 4
    for path in files:
        ours = {name for name in imported(path) if name.startswith("mpsoftmax")}
        assert all(name.startswith("mpsoftmax.kernels") for name in ours), path
        assert "torch.distributed" not in imported(path), path


def test_every_listed_config_loads():
    """Each file under configs/ is a valid configuration of parts that exist."""
    from mpsoftmax.config import load
    from mpsoftmax.train.build import check_parts

    files = list((ROOT / "configs").rglob("*.yaml"))
    assert len(files) >= 2
    for path in files:
        check_parts(load(path))
