"""What a translation of one configuration into another is made of: the tree, a line for each key, sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """What became of one key.

    Attributes:
        key: Theirs.
        value: As it was given.
        becomes: `our.key: value`, several joined by "; ", or what it is used for, in brackets; empty where
            there is no counterpart.
        note: What else is to be known.
    """

    key: str
    value: Any
    becomes: str = ""
    note: str = ""


@dataclass
class Translation:
    """A configuration of ours on its way.

    Attributes:
        tree: What differs from our defaults, as from_tree takes it.
        rows: What became of every key, in its order.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def put(self, key: str, value: Any, becomes: Mapping[str, Any], note: str = "") -> None:
        """One key of theirs and what it is here, `section.key` -> value."""
        for path, item in becomes.items():
            section, at = self.tree, path.split(".")
            for name in at[:-1]:
                section = section.setdefault(name, {})
            section[at[-1]] = item
        told = "; ".join(f"{path}: {shown(item)}" for path, item in becomes.items())
        self.rows.append(Row(key, value, told, note))

    def use(self, key: str, value: Any, how: str) -> None:
        """One key of theirs that is used, or looked up elsewhere, and is no setting here."""
        self.rows.append(Row(key, value, f"({how})"))


@dataclass(frozen=True)
class Sizes:
    """Numbers that several keys need.

    Attributes:
        world: GPUs of the old run.
        batch: Samples of one of its iterations over all GPUs.
        accumulation: Iterations of an optimiser step.
        per_epoch: Iterations of an epoch; None where num_image is not given.
    """

    world: int
    batch: int
    accumulation: int
    per_epoch: int | None

    def steps(self, epochs: float) -> int:
        """Optimiser steps of so many epochs."""
        assert self.per_epoch is not None
        return int(self.per_epoch * epochs) // self.accumulation

    @staticmethod
    def of(values: Mapping[str, Any], world: int) -> "Sizes":
        """From the keys.

        Raises:
            ValueError: a number is missing or none.
        """
        batch = whole(values, "batch_size") * world
        images = whole(values, "num_image") if "num_image" in values else None
        per_epoch = None if images is None else images // batch
        if per_epoch == 0:
            raise ValueError(
                f"num_image: {images}; allowed: at least a batch of {world} GPUs, {batch} images"
            )
        return Sizes(world, batch, whole(values, "gradient_acc"), per_epoch)


def shown(value: Any) -> str:
    """A value as one would write it in YAML, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def number(key: str, value: Any) -> float:
    """A finite number of at least 0.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise ValueError(f"{key}: {value!r:.100}; allowed: a number of at least 0")
    return value


def whole(values: Mapping[str, Any], key: str) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it is none.
    """
    value = number(key, values[key])
    if value < 1 or value != int(value):
        raise ValueError(f"{key}: {value!r}; allowed: a whole number of at least 1")
    return int(value)
