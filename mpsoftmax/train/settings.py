"""The configuration of a training: from a file, or from the data alone."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsoftmax.config import Config, apply_override, from_tree, load
from mpsoftmax.config.loading import DEFAULT_KINDS, read_yaml
from mpsoftmax.train.data_facts import look, run_name, with_length
from mpsoftmax.train.defaults import (
    choose,
    filled_in,
    is_given,
    render,
    value_of,
    with_value,
)


def settings_of(
    path: str | None, overrides: Sequence[str], world: int, *, gpu: bool | None = None
) -> tuple[Config, str]:
    """The configuration, and what is to be said about where it comes from.

    With a file, its settings and the overrides and nothing else. Without one, `data.train` must be among the
    overrides: what is not given is chosen from the data (`defaults.py`), or, where the run folder holds a
    run already, taken from that run.

    Args:
        path: The file, or None.
        overrides: `key.path=value`.
        world: Ranks.
        gpu: Whether it is to run on GPUs; None: as this machine has them or not.

    Raises:
        ValueError: as `load`; or neither a file nor data; or the data cannot be opened; or the folder that
            they name holds a run on others.
    """
    if path is not None:
        return load(path, overrides), ""
    given: dict[str, Any] = {}
    for override in overrides:
        apply_override(given, override, kinds={})  # a kind that is not given is chosen, if any is
    valid = from_tree(with_length(given))
    if not is_given(given, "data.train"):
        raise ValueError(
            "neither CONFIG nor data.train=PATH is given; allowed: a YAML file, or data.train=PATH alone, "
            "such as data.train=faces.tar"
        )
    folder = Path(str(value_of(given, "run.dir", f"runs/{run_name(valid)}")))
    stored = folder / "config.yaml"
    if stored.exists():
        if not is_given(given, "run.dir"):
            check_same_data(stored, valid)
        return continued(stored, overrides, given), f"settings of {stored}, the run found there"
    facts = look(given, world)
    choices = choose(facts if gpu is None else replace(facts, gpu=gpu), given)
    return from_tree(with_kinds(filled_in(given, choices))), render(choices)


def with_kinds(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tree in which named parts of which single fields were given have their default kind."""
    for path, kind in DEFAULT_KINDS.items():
        if isinstance(value_of(tree, path, None), Mapping) and not is_given(tree, f"{path}.kind"):
            tree = with_value(tree, f"{path}.kind", kind)
    return tree


def check_same_data(stored: Path, config: Config) -> None:
    """Raise ValueError where the folder named after the data holds a run on other data."""
    before, now = data_of(from_tree(read_yaml(stored))), data_of(config)
    if before != now:
        raise ValueError(
            f"run.dir: {stored.parent}, by the data's name, holds a run on {', '.join(before)}; allowed: "
            f"another run.dir=FOLDER, or run.dir={stored.parent} to go on with it on {', '.join(now)}"
        )


def data_of(config: Config) -> list[str]:
    """Where the data of a training are, from the root of the file system."""
    paths = [dataset.path for dataset in config.data.datasets]
    return [path if path in ("glyphs", "synthetic") else os.path.abspath(path) for path in paths]


def continued(stored: Path, overrides: Sequence[str], given: dict[str, Any]) -> Config:
    """The settings of a run, with what is given now."""
    tree = read_yaml(stored)
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        length = f"train.{one}"
        if is_given(given, length) and not is_given(given, f"train.{other}"):
            tree = {**tree, "train": {**tree.get("train", {}), other: None}}
    for override in overrides:
        apply_override(tree, override)
    return from_tree(tree)
