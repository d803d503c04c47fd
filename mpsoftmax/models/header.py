"""What an exported model says of itself: JSON beside its weights, and how it is read back.

    {"format": 1, "source": ..., "step": ..., "preprocessing": ..., "config": ..., "training": ...,
     "versions": ...}

`config` holds what is needed to build the backbone and to embed as in training, and nothing that names a path
of the machine it was trained on.
"""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch

import mpsoftmax
from mpsoftmax.config import Config, from_tree, plain, to_tree

KEY = "mpsoftmax"
"""Under which the JSON stands in a file's metadata."""
FORMAT = 1
MAX_HEADER_CHARS = 1 << 24
DATA_KEYS = ("image_size", "crop", "decoder", "seed")


def portable_config(config: Config) -> dict[str, Any]:
    """The part of a training's configuration that its backbone and preprocessing need."""
    tree = to_tree(config)
    names = [PurePath(str(one.path)).name for one in config.data.datasets]
    data = {key: tree["data"][key] for key in DATA_KEYS} | {"train": " + ".join(names)}
    if config.data.train == "glyphs":
        data["glyphs"] = {**tree["data"]["glyphs"], "fonts": []}
    kept = ("precision", "steps", "epochs")
    return {
        "backbone": tree["backbone"],
        "data": data,
        "train": {key: tree["train"][key] for key in kept},
    }


def preprocessing(config: Config) -> dict[str, Any]:
    """How an image becomes what the backbone takes, in words and numbers, in this order."""
    data = config.data
    return {
        "decode": f"{data.decoder}, RGB, an orientation noted in the file is ignored",
        "crop": data.crop,
        "crop_is": "central share of each side that is kept",
        "resize": list(data.image_size),
        "resize_is": "height, width; bilinear and antialiased (Pillow), where the size differs",
        "normalise": "(x - 127.5) / 127.5, float32 in [-1, 1]",
        "layout": "NCHW, channels R, G, B",
        "output": "raw embeddings float32 [b, D]; divide by the Euclidean norm before comparing",
    }


def versions() -> dict[str, str]:
    """Of what took part."""
    return {"mpsoftmax": mpsoftmax.__version__, "torch": torch.__version__}


def header(
    config: Config, *, source: str, step: int, training: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON tree that goes with exported weights.

    Args:
        config: Of the training.
        source: What the model is called, a name and no path.
        step: Of the training.
        training: What else is to be told of it (`mpsoftmax.export.card`).
    """
    return {
        "format": FORMAT,
        "source": source,
        "step": step,
        "preprocessing": preprocessing(config),
        "config": portable_config(config),
        "training": plain(dict(training or {})),
        "versions": versions(),
    }


def read_header(text: str | None, where: str) -> tuple[dict[str, Any], Config]:
    """A header written by `header`, believed in nothing before it is checked, and its configuration.

    Raises:
        ValueError: missing, damaged, of another format, or a configuration that is none; names the file.
    """
    if text is None:
        raise ValueError(
            f"{where}: no metadata {KEY!r}; allowed: a model that `mpsoftmax export` wrote"
        )
    if len(text) > MAX_HEADER_CHARS:
        raise ValueError(f"{where}: its metadata is longer than {MAX_HEADER_CHARS} characters")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: metadata {KEY!r} is no JSON: {error}") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"{where}: metadata {KEY!r} is of no format known here: {FORMAT}")
    if type(tree.get("step")) is not int or not isinstance(tree.get("config"), dict):
        raise ValueError(f"{where}: metadata {KEY!r} is damaged: step or config")
    try:
        return tree, from_tree(tree["config"])
    except ValueError as error:
        raise ValueError(f"{where}: metadata {KEY!r}: {error}") from error
