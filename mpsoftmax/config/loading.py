"""YAML files and `key.path=value` overrides into a Config, and back."""

import dataclasses
import shlex
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mpsoftmax.config.sections import Config
from mpsoftmax.data.near_names import near_name
from mpsoftmax.strict import build, parse_yaml

DEFAULT_KINDS = {
    "head.objective": "arcface",
    "head.negatives": "all",
    "head.candidates": "all",
    "head.weights": "learned",
    "head.optimizer": "sgd",
    "head.baskets.rule": "top_one",
    "train.engine": "ddp",
}
"""The named parts, {kind: name, ...}, by path, and the kind of each that is not given."""

DATA_SUFFIXES = (".tar", ".rec", ".parquet", ".arrow", ".lst", ".csv", ".bin")
"""Of files that are data and never a config."""


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `key.path=value` overrides, all strictly checked.

    Args:
        path: The file; None starts from the defaults.
        overrides: Values are YAML: `train.steps=100`, `data.eval=[a.bin, b.bin]`.

    Raises:
        ValueError: unreadable file, unknown key (with the nearest known one), wrong type, value out of
            range, or a combination without meaning.
    """
    tree = read_yaml(path) if path is not None else {}
    for override in overrides:
        apply_override(tree, override)
    return from_tree(tree)


def from_tree(tree: Mapping[str, Any]) -> Config:
    """A Config from nested mappings, strictly."""
    return typing.cast(Config, build(Config, tree, ""))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        return mapping_in(path)
    except ValueError as error:
        raise ValueError(f"{error}{meant_as_data(path)}") from error


def mapping_in(path: str | Path) -> dict[str, Any]:
    """`read_yaml`, its errors without what else the path may have been meant as."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        hint = near_name(path) if isinstance(error, FileNotFoundError) else ""
        raise ValueError(f"config {path}: cannot be read: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path}: not UTF-8 text: {error}") from error
    tree = parse_yaml(text, f"config {path}")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"config {path}: holds a {type(tree).__name__}; allowed: a mapping")
    return tree


def meant_as_data(path: str | Path) -> str:
    """`; did you mean data.train=PATH?` where a config's path is that of data or of a run, else nothing."""
    suffix, folder = Path(path).suffix.lower(), Path(path).is_dir()
    if not Path(path).exists():
        return ""
    if folder and (Path(path) / "config.yaml").exists():
        return f"; did you mean {shlex.quote(str(Path(path) / 'config.yaml'))}?"
    if not folder and suffix not in DATA_SUFFIXES:
        return ""
    key = "data.eval" if suffix == ".bin" else "data.train"
    return f"; did you mean {shlex.quote(f'{key}={path}')}?"


def apply_override(
    tree: dict[str, Any], override: str, kinds: Mapping[str, str] = DEFAULT_KINDS
) -> None:
    """Set one `key.path=value` in a tree of mappings, in place.

    A name on the way ({head: {objective: cosface}}) becomes a mapping {kind: name}, and a named part that is
    not there begins as its default, so that head.objective.margin=0.4 works on top of either.

    Args:
        tree: Changed.
        override: `key.path=value`.
        kinds: What named parts begin as, by path; those left out begin without a kind.
    """
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ValueError(f"override {override!r}; allowed: key.path=value")
    for place, key in enumerate(keys[:-1], start=1):
        below = tree.get(key)
        if isinstance(below, str):
            below = {"kind": below}
        elif below is None:
            kind = kinds.get(".".join(keys[:place]))
            below = {} if kind is None else {"kind": kind}
        elif not isinstance(below, dict):
            raise ValueError(f"override {override!r}: {key} is {below!r}, which has no fields")
        tree[key] = below
        tree = below
    tree[keys[-1]] = parse_yaml(text, f"override {override!r}")


def to_tree(config: Config) -> dict[str, Any]:
    """Nested plain mappings and lists, ready for YAML or JSON."""
    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def plain(value: Any) -> Any:
    """Tuples become lists, recursively."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def to_yaml(config: Config) -> str:
    """The resolved configuration as `load` reads it back."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)
