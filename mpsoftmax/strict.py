"""Plain data into dataclasses, strictly: every key known, every value of its annotated type.

Errors name the path of the value (`train.optimizer.lr`), what was given and what is allowed. Annotations
understood: bool, int, float, str, Any, Literal, unions, tuple, dict, and dataclasses of these.
"""

import dataclasses
import difflib
import reprlib
import types
import typing
from typing import Any, Literal

import yaml

LARGEST = 2**63


class UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"key {', '.join(sorted(twice))} is given twice")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """YAML, safely; a ValueError that names the place."""
    try:
        return yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def build(kind: Any, value: Any, path: str) -> Any:
    """`value` from YAML as an instance of a dataclass or annotation; errors name `path`.

    A dataclass instance, which YAML cannot hold, is one that was built before and passes as it is.
    """
    if dataclasses.is_dataclass(value):
        return value
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError(f"{path}: a number of {value.bit_length()} bits; allowed: below 2^63")
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build_dataclass(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return build_literal(arguments, value, path)
    if origin in (typing.Union, types.UnionType):
        return build_union(arguments, value, path)
    if origin is tuple:
        return build_tuple(arguments, value, path)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise wrong_type(path, value, "a mapping with text keys")
        return value
    return build_scalar(typing.cast(type, kind), value, path)


def build_dataclass(kind: type, value: Any, path: str) -> Any:
    """A config section: every key known, every value of its type."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise wrong_type(path, value, f"a mapping of {', '.join(kind.__dataclass_fields__)}")
    known = typing.get_type_hints(kind)
    hints = {one.name: known[one.name] for one in dataclasses.fields(kind) if one.init}
    for key in value:
        if key not in hints:
            raise ValueError(
                f"{join(path, str(key))}: unknown key{suggestion(str(key), list(hints))}"
            )
    given = {key: build(hints[key], item, join(path, key)) for key, item in value.items()}
    fields = dataclasses.fields(kind)
    required = [one.name for one in fields if one.init and not has_default(one)]
    missing = [name for name in required if name not in given]
    if missing:
        raise ValueError(f"{join(path, missing[0])}: missing; it has no default")
    return kind(**given)


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a field may be left out."""
    return not (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def build_literal(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    """One of a few names."""
    if value in choices and isinstance(value, str):
        return value
    names = [str(choice) for choice in choices]
    raise ValueError(
        f"{path}: {short(value)}; allowed: {', '.join(names)}{did_you_mean(short(value), names)}"
    )


def build_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """The first alternative that fits; else the errors of those that have the value's shape, or of all."""
    if value is None and type(None) in kinds:
        return None
    errors, shaped = [], []
    for kind in kinds:
        if kind is not type(None):
            try:
                return build(kind, value, path)
            except ValueError as error:
                errors.append(str(error))
                if same_shape(kind, value):
                    shaped.append(str(error))
    raise ValueError("; or ".join(shaped or errors))


def same_shape(kind: Any, value: Any) -> bool:
    """Whether an annotation means a mapping and the value is one, or a list likewise."""
    if isinstance(value, dict):
        return dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict
    return isinstance(value, list | tuple) and typing.get_origin(kind) is tuple


def build_tuple(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    """A list: of any length for tuple[X, ...], else of the stated length. A lone item is a list of one."""
    repeated = len(kinds) == 2 and kinds[1] is Ellipsis
    if repeated and isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list | tuple):
        raise wrong_type(path, value, "a list")
    if not repeated and len(value) != len(kinds):
        raise ValueError(f"{path}: {len(value)} items; allowed: {len(kinds)}")
    inner = [kinds[0]] * len(value) if repeated else kinds
    items = zip(inner, value, strict=True)
    return tuple(build(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(items))


def build_scalar(kind: type, value: Any, path: str) -> Any:
    """bool, int, float or str, without guessing; YAML reads 1e-3 as text, which a float field accepts."""
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if kind is Any or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise wrong_type(path, value, names[kind])


def wrong_type(path: str, value: Any, allowed: str) -> ValueError:
    """The error for a value of the wrong type."""
    return ValueError(f"{path or 'config'}: {short(value)}; allowed: {allowed}")


def short(value: Any) -> str:
    """A value as text, cut where it is long: what a file holds may be made to explode when printed."""
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxstring, shortener.maxother = 4, 200, 200
    return shortener.repr(value)


def join(path: str, key: str) -> str:
    """path.key."""
    return f"{path}.{key}" if path else key


def did_you_mean(word: str, known: list[str]) -> str:
    """'; did you mean X?' where X is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def suggestion(word: str, known: list[str]) -> str:
    """'; did you mean X?' where X is near, else '; allowed: ...'."""
    return did_you_mean(word, known) or f"; allowed: {', '.join(sorted(known))}"
