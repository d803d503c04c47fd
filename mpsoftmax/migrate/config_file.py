"""Reading an arcface_torch config, a Python file, without running it.

What such files consist of is understood: `config = edict()`, `config.key = value`, names of their own,
literals, arithmetic, f-strings, and earlier keys. Everything else is refused with its line.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
MAX_POWER, MAX_TEXT = 64, 1 << 16
CONFIG = "config"

ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}


@dataclass(frozen=True)
class ForeignConfig:
    """A config of arcface_torch.

    Attributes:
        path: The file.
        values: Its keys over those of base.py.
        base: The base.py beside it that was merged; None where there is none.
    """

    path: Path
    values: Mapping[str, Any]
    base: Path | None


def read_config_file(path: Path) -> ForeignConfig:
    """The keys of a config, merged over the base.py beside it as arcface_torch does.

    Raises:
        ValueError: a file cannot be read, or a line does what is not understood here; names file and line.
    """
    values = assigned(path)
    base = path.with_name("base.py")
    if path.name == base.name or not base.is_file():
        return ForeignConfig(path, values, None)
    return ForeignConfig(path, {**assigned(base), **values}, base)


def assigned(path: Path) -> dict[str, Any]:
    """What one file assigns to config, in its order.

    Raises:
        ValueError: as `read_config_file`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"config {path}: cannot be read as Python: {error}") from error
    reader = Reader(path)
    for statement in tree.body:
        reader.take(statement)
    if not reader.made:
        raise ValueError(
            f"config {path}: makes no config; allowed: a config of arcface_torch, with {CONFIG} = edict()"
        )
    return reader.config


class Reader:
    """The statements of one file, one after the other.

    Args:
        path: Of the file, for messages.

    Attributes:
        config: Keys so far.
        made: Whether `config = edict()` was met.
    """

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {}
        self.made = False
        self._path = path
        self._names: dict[str, Any] = {}

    def take(self, statement: ast.stmt) -> None:
        """Understand one statement."""
        if isinstance(statement, ast.Import | ast.ImportFrom):
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return  # a docstring
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            raise self._refusal(statement)
        target = statement.targets[0]
        if isinstance(target, ast.Name) and target.id == CONFIG:
            self._make(statement.value)
        elif isinstance(target, ast.Name):
            self._names[target.id] = self._bounded(statement.value)
        else:
            self.config[self._key(target)] = self._bounded(statement.value)

    def _make(self, value: ast.expr) -> None:
        makers = ("edict", "EasyDict", "dict")
        if (
            not isinstance(value, ast.Call)
            or not isinstance(value.func, ast.Name)
            or value.func.id not in makers
            or value.args
        ):
            raise self._refusal(value)
        self.config.update({str(k.arg): self._bounded(k.value) for k in value.keywords})
        self.made = True

    def _key(self, target: ast.expr) -> str:
        """The key in config.key or config["key"]."""
        if isinstance(target, ast.Attribute | ast.Subscript) and isinstance(target.value, ast.Name):
            of_config = target.value.id == CONFIG
            if of_config and isinstance(target, ast.Attribute):
                return target.attr
            if of_config and isinstance(target, ast.Subscript):
                key = target.slice
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    return key.value
        raise self._refusal(target)

    def _bounded(self, node: ast.expr) -> Any:
        """What an expression is; refused where it grows beyond any config, as lists of lists of lists can."""
        try:
            value = self._value(node)
            if size_of(value) > MAX_TEXT:
                raise ValueError(
                    f"config {self._path}, line {node.lineno}: a value of more than {MAX_TEXT} parts"
                )
        except RecursionError:
            raise ValueError(
                f"config {self._path}, line {node.lineno}: is nested too deeply to be read"
            ) from None
        return value

    def _value(self, node: ast.expr) -> Any:
        """What an expression is."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            items = [self._value(item) for item in node.elts]
            return tuple(items) if isinstance(node, ast.Tuple) else items
        if isinstance(node, ast.Dict):
            return self._mapping(node)
        if isinstance(node, ast.Name):
            return self._known(node, self._names, node.id)
        if isinstance(node, ast.Attribute | ast.Subscript):
            return self._known(node, self.config, self._key(node))
        if isinstance(node, ast.JoinedStr):
            return self._text(node)
        return self._arithmetic(node)

    def _mapping(self, node: ast.Dict) -> dict[Any, Any]:
        keys = [None if key is None else self._value(key) for key in node.keys]
        if not all(isinstance(key, str | int | float) for key in keys):
            raise self._refusal(node)
        return dict(zip(keys, map(self._value, node.values), strict=True))

    def _known(self, node: ast.expr, names: Mapping[str, Any], name: str) -> Any:
        if name not in names:
            raise ValueError(
                f"config {self._path}, line {node.lineno}: {ast.unparse(node)!r} is not assigned before"
            )
        return names[name]

    def _text(self, node: ast.JoinedStr) -> str:
        parts = []
        for part in node.values:
            if isinstance(part, ast.Constant):
                parts.append(str(part.value))
            elif isinstance(part, ast.FormattedValue) and part.format_spec is None:
                parts.append(str(self._value(part.value)))
            else:
                raise self._refusal(node)
        return "".join(parts)

    def _arithmetic(self, node: ast.expr) -> Any:
        if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
            sign, values = SIGNS[type(node.op)], [self._value(node.operand)]
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            sign = ARITHMETIC[type(node.op)]
            values = [self._value(node.left), self._value(node.right)]
        else:
            raise self._refusal(node)
        if not self._harmless(node, values):
            raise self._refusal(node)
        try:
            return sign(*values)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(
                f"config {self._path}, line {node.lineno}: {ast.unparse(node)!r}: {error}"
            ) from error

    @staticmethod
    def _harmless(node: ast.UnaryOp | ast.BinOp, values: list[Any]) -> bool:
        """Numbers, or a sum of texts or lists; nothing that grows without bound."""
        if all(isinstance(value, int | float) for value in values):
            small = all(abs(value) < 2**63 for value in values)
            power = isinstance(node.op, ast.Pow)
            return small and (not power or abs(values[1]) <= MAX_POWER)
        alike = len({type(value) for value in values}) == 1 and isinstance(node.op, ast.Add)
        sized = isinstance(values[0], str | list | tuple)
        return alike and sized and sum(map(len, values)) <= MAX_TEXT

    def _refusal(self, node: ast.stmt | ast.expr) -> ValueError:
        text = " ".join(ast.unparse(node).split())
        return ValueError(
            f"config {self._path}, line {node.lineno}: {text:.80}: is read, never run; allowed: "
            f"{CONFIG}.key = a literal, arithmetic, an f-string or an earlier key"
        )


def size_of(value: Any) -> int:
    """Characters of a text; items within items of a collection, counted no further than past MAX_TEXT."""
    waiting, size = [value], 0
    while waiting and size <= MAX_TEXT:
        one = waiting.pop()
        size += len(one) if isinstance(one, str | bytes) else 1
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
    return size
