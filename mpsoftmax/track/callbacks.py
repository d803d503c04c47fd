"""The door for others: classes that a configuration names by import path."""

import importlib

from mpsoftmax.config import Config
from mpsoftmax.track.protocol import Callback

METHODS = [name for name in vars(Callback) if name.startswith("on_")]


def load_callbacks(config: Config) -> list[Callback]:
    """Instances of track.callbacks, in order.

    Only a run's own configuration is ever asked; one that comes with a checkpoint is not.

    Raises:
        ValueError: no such module or class, one without the methods, or one that fails when made.
    """
    paths = config.track.callbacks
    return [load_callback(f"track.callbacks[{i}]", path) for i, path in enumerate(paths)]


def load_callback(where: str, path: str) -> Callback:
    """One instance by `package.module:Class`."""
    module, _, name = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
        made = kind()
    except Exception as error:  # whatever foreign code raises
        raise ValueError(f"{where}: {path!r}: {type(error).__name__}: {error}") from error
    missing = [method for method in METHODS if not callable(getattr(made, method, None))]
    if missing:
        raise ValueError(
            f"{where}: {path!r} has no {missing[0]}; allowed: a subclass of mpsoftmax.track.Callback"
        )
    return made
