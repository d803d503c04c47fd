"""Settings of a training that was given its data and nothing else: each with the reason it was chosen for.

Pure functions of facts. What the user gave is never changed; a value is chosen only for a key that was not
given. The chosen values are part of the run's config.yaml like any other, and a run that is continued takes
them from there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpsoftmax.train.data_facts import Facts

CAP = 112
"""Longest side in pixels of square images, as face embedding has it."""
TALL_CAP = 256
"""Height of tall images, as re-identification has it."""
MANY_CLASSES = 1_000_000
"""From here a step does not touch all classes."""


@dataclass(frozen=True)
class Choice:
    """One setting: the key's path, the value, and why."""

    key: str
    value: Any
    reason: str


def choose(facts: Facts, tree: Mapping[str, Any]) -> list[Choice]:
    """The settings that were not given.

    Args:
        facts: Of data and machine.
        tree: What was given.
    """
    choices: list[Choice] = []
    filled = dict(tree)
    for part in (_of_data, _of_net, _of_training, _of_head):
        for choice in part(facts, filled):
            if not is_given(filled, choice.key):
                choices.append(choice)
                filled = with_value(filled, choice.key, choice.value)
    return choices


def filled_in(tree: Mapping[str, Any], choices: Sequence[Choice]) -> dict[str, Any]:
    """The tree with the choices."""
    out = dict(tree)
    for choice in choices:
        out = with_value(out, choice.key, choice.value)
    return out


def is_given(tree: Mapping[str, Any], key: str) -> bool:
    """Whether a tree says anything about a key: about itself, or about a part it belongs to as a whole."""
    below: Any = tree
    for name in key.split("."):
        if not isinstance(below, Mapping):
            return True
        if name not in below:
            return False
        below = below[name]
    return True


def value_of(tree: Mapping[str, Any], key: str, default: Any) -> Any:
    """A key's value in a tree."""
    below: Any = tree
    for name in key.split("."):
        if not isinstance(below, Mapping) or below.get(name) is None:
            return default
        below = below[name]
    return below


def with_value(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the tree in which a key has a value."""
    name, dot, rest = key.partition(".")
    return {**tree, name: with_value(tree.get(name) or {}, rest, value) if dot else value}


def render(choices: Sequence[Choice]) -> str:
    """The choices as a table."""
    rows = [(choice.key, _text(choice.value), choice.reason) for choice in choices]
    widths = [max(len(row[k]) for row in rows) for k in range(2)] if rows else [0, 0]
    lines = [f"  {key:<{widths[0]}}  {value:<{widths[1]}}  {reason}" for key, value, reason in rows]
    return "\n".join(["settings chosen from the data (give a key to set it yourself):", *lines])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)


def _of_data(facts: Facts, tree: Mapping[str, Any]) -> Iterator[Choice]:
    yield Choice("run.dir", f"runs/{facts.name}", "named after the data")
    height, width = facts.image_size
    size = network_size(height, width)
    yield Choice(
        "data.image_size", list(size), f"images are {height} x {width} at the median; capped"
    )
    yield _augment(facts)
    pairs = int((facts.class_sizes >= 2).sum())
    singles = int((facts.class_sizes == 1).sum())
    if singles and pairs >= 100:
        reason = f"{singles:,} classes have one image, which has nothing to be near to"
        yield Choice("data.min_images_per_class", 2, reason)
    yield from _validation(facts, tree, pairs)
    if facts.row_groups:
        yield Choice("data.order", "grouped", "Parquet is read by row groups")
    workers = max(1, min(8, facts.cores // facts.local_world))
    yield Choice("data.workers", workers, f"{facts.cores} cores for {facts.local_world} rank(s)")


def network_size(height: int, width: int) -> tuple[int, int]:
    """Height and width for the network: the images' own, capped, in multiples of 16, at least 32."""
    tall = height >= 1.5 * width
    cap = TALL_CAP if tall else CAP
    scale = min(1.0, cap / max(height, width))
    if not tall and max(height, width) <= 1.25 * min(height, width):
        height = width = max(height, width)  # nearly square
    sides = (max(32, round(side * scale / 16) * 16) for side in (height, width))
    return next(sides), next(sides)


def _augment(facts: Facts) -> Choice:
    height, width = facts.image_size
    if facts.source == "glyphs":
        return Choice("data.augment", "glyph", "a mirrored character is another one")
    if height >= 1.5 * width:
        return Choice("data.augment", "reid", "tall images: flip, crop, erase")
    return Choice("data.augment", "face", "flip; none if a mirror image is another class")


def _validation(facts: Facts, tree: Mapping[str, Any], pairs: int) -> Iterator[Choice]:
    """What the model is judged by, where the user names nothing."""
    if is_given(tree, "data.eval"):
        return
    if facts.source == "glyphs":
        yield Choice("data.eval", ["glyphs-open"], "characters that are never trained on")
    elif facts.num_datasets == 1 and pairs >= 50 and not is_given(tree, "data.held_back"):
        held = min(500, max(10, pairs // 20))
        yield Choice(
            "data.held_back", held, f"of {pairs:,} classes with two images; to be judged by"
        )
        yield Choice("data.eval", ["held-back"], "pairs of the classes held back")


def kept_sizes(facts: Facts, tree: Mapping[str, Any]) -> np.ndarray:
    """Images of each class that has enough of them."""
    least = int(value_of(tree, "data.min_images_per_class", 1))
    return facts.class_sizes[facts.class_sizes >= least]


def _of_net(facts: Facts, tree: Mapping[str, Any]) -> Iterator[Choice]:
    num = int(kept_sizes(facts, tree).sum())
    longest = max(value_of(tree, "data.image_size", facts.image_size))
    name, reason = backbone(num, longest, facts.gpu)
    yield Choice("backbone.name", name, reason)
    dim = 256 if num < 100_000 else 512
    yield Choice("backbone.embedding_dim", dim, f"{num:,} images")


def backbone(num_images: int, longest: int, gpu: bool) -> tuple[str, str]:
    """A network that data of that size can fill, and why; the longest side is in pixels."""
    images = f"{num_images:,} images"
    if not gpu:
        name = "small" if longest <= 64 else "mobilefacenet"
        return name, f"{images} of {longest} pixels, and no GPU"
    if num_images < 20_000:
        return ("small" if longest <= 64 else "mobilefacenet"), images
    if num_images < 200_000:
        return "iresnet18", images
    if num_images < 2_000_000:
        return "iresnet34", images
    return ("iresnet50" if num_images < 10_000_000 else "iresnet100"), images


def _of_training(facts: Facts, tree: Mapping[str, Any]) -> Iterator[Choice]:
    num = int(kept_sizes(facts, tree).sum())
    size = 128 if num < 50_000 else 256 if num < 1_000_000 else 512
    size = max(facts.world, min(size, max(16, num // 8)))
    yield Choice("train.batch_size", size, f"{num:,} images")
    size = int(value_of(tree, "train.batch_size", size))
    epochs = 40 if num < 50_000 else 24 if num < 1_000_000 else 20
    if value_of(tree, "train.steps", None) is None and value_of(tree, "train.epochs", None) is None:
        yield Choice("train.epochs", epochs, f"{num:,} images")
    epochs = float(value_of(tree, "train.epochs", epochs))
    steps = int(value_of(tree, "train.steps", 0)) or math.ceil(epochs * num / size)
    yield _schedule(tree)
    yield Choice("train.schedule.warmup", 0.1, "a tenth of the steps to warm up")
    yield Choice("train.clip_norm", 5.0, "the first steps cannot run away")
    often = max(50, steps // 10)
    yield Choice("train.eval_every", often, f"of about {steps:,} steps")
    yield Choice("train.checkpoint_every", often, "as often")
    yield Choice("train.log_every", max(1, min(50, steps // 100)), f"of about {steps:,} steps")


def _schedule(tree: Mapping[str, Any]) -> Choice:
    """The kind that has the fields given; cosine where none says another."""
    for field, kind in (("milestones", "step"), ("gamma", "step"), ("power", "polynomial")):
        if is_given(tree, f"train.schedule.{field}"):
            return Choice("train.schedule.kind", kind, f"its {field} is given")
    return Choice("train.schedule.kind", "cosine", "the usual shape")


def _of_head(facts: Facts, tree: Mapping[str, Any]) -> Iterator[Choice]:
    sizes = kept_sizes(facts, tree)
    num, classes = int(sizes.sum()), len(sizes)
    if num < 200_000:
        gentle = {"kind": "cosface", "scale": 32, "margin": 0.2}
        yield from _part(tree, "head.objective", gentle, f"{num:,} images: a gentle margin")
    else:
        usual = {"kind": "cosface", "scale": 64, "margin": 0.35}
        yield from _part(tree, "head.objective", usual, "usual")
    if classes >= MANY_CLASSES and not is_given(tree, "head.weights"):
        rate = float(np.round(max(0.01, min(0.1, MANY_CLASSES / classes)), 2))
        sampled = {"kind": "uniform", "rate": rate}
        reason = f"{classes:,} classes: a share of them a step"
        yield from _part(tree, "head.candidates", sampled, reason)


def _part(
    tree: Mapping[str, Any], path: str, fields: Mapping[str, Any], reason: str
) -> Iterator[Choice]:
    """A named part as a whole; of one whose kind was left open and fields given, the fields that are not."""
    if not isinstance(value_of(tree, path, None), Mapping):
        yield Choice(path, dict(fields), reason)
    elif not is_given(tree, f"{path}.kind"):
        for name, value in fields.items():
            yield Choice(f"{path}.{name}", value, reason)
