"""What a configuration names as package.module:name: code of the user's, imported and therefore run."""

import importlib
from functools import reduce
from typing import Any


def imported(field: str, path: str) -> Any:
    """What `package.module:name` names. Importing runs code: only for paths that the user gave.

    Args:
        field: Who names it, for messages.
        path: ``package.module:name``, the name perhaps with dots.

    Raises:
        ValueError: not of that form, no such module, or no such name in it.
        ImportError: The module exists; something that it imports does not.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise ValueError(f"{field}: {path!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{field}: {path!r}: no module named {error.name!r}; is its folder on PYTHONPATH?"
        ) from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ValueError(f"{field}: {path!r}: {error}") from error
