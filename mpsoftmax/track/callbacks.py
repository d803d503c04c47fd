"""The door for others: classes that a configuration names by import path."""

from mpsoftmax.config import Config
from mpsoftmax.import_path import imported
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
    try:
        made = imported(where, path)()
    except Exception as error:  # whatever foreign code raises
        said = str(error) if str(error).startswith(where) else f"{where}: {path!r}: {error!r}"
        raise ValueError(said) from error
    missing = [method for method in METHODS if not callable(getattr(made, method, None))]
    if missing:
        raise ValueError(
            f"{where}: {path!r} has no {missing[0]}; allowed: a subclass of mpsoftmax.track.Callback"
        )
    return made
