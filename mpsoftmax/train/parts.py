"""Named parts of the head: from `name` or {kind: name, ...} in the configuration to an object."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from mpsoftmax.config import BasketsConfig, Config
from mpsoftmax.head.baskets import Baskets
from mpsoftmax.head.candidates import CANDIDATES, Candidates
from mpsoftmax.head.mining import RULES, Rule
from mpsoftmax.head.negatives import NEGATIVES, Negatives
from mpsoftmax.head.objectives import OBJECTIVES, Objective
from mpsoftmax.head.objectives.per_basket import per_basket
from mpsoftmax.head.row_optim import RowAdamW, RowRule, RowSGD
from mpsoftmax.head.weights import WEIGHTS, Weights
from mpsoftmax.import_path import imported
from mpsoftmax.strict import build, did_you_mean, suggestion

Choices = Mapping[str, type]
ROW_RULES: dict[str, type] = {"sgd": RowSGD, "adamw": RowAdamW}


def named_part(
    path: str,
    spec: str | Mapping[str, Any],
    choices: Choices,
    nested: Mapping[str, Choices] | None = None,
) -> Any:
    """An instance from `name` or {kind: name, field: value, ...}, every field known and typed.

    Args:
        path: Where the part stands in the configuration.
        spec: The name or mapping.
        choices: The parts by name.
        nested: Fields that are named parts themselves, with their choices.

    Raises:
        ValueError: unknown kind or field, wrong type, or what the part itself refuses; names the path.
    """
    given = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = str(given.pop("kind", None))
    if kind not in choices:
        raise ValueError(f"{path}: kind {kind!r}{suggestion(kind, list(choices))}")
    known = {field.name for field in fields(choices[kind]) if field.init}
    for key in given:
        if key not in known:
            raise unknown_field(path, kind, str(key), choices)
    for name, inner in (nested or {}).items():
        if name in known and isinstance(given.get(name), str | Mapping):
            given[name] = named_part(f"{path}.{name}", given[name], inner, nested)
    try:
        return build(choices[kind], given, path)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(path) else f"{path}: {message}") from error


def unknown_field(path: str, kind: str, key: str, choices: Choices) -> ValueError:
    """The error for a field that a kind lacks: the field that was meant, or the kinds that have it."""
    fields_of = {
        name: [one.name for one in fields(part) if one.init] for name, part in choices.items()
    }
    others = [name for name, known in fields_of.items() if key in known]
    meant = did_you_mean(key, fields_of[kind])
    if others and not meant:
        return ValueError(
            f"{path}.{key}: unknown key of kind {kind!r}; allowed with {path}={' or '.join(others)}"
        )
    known = ", ".join(sorted(fields_of[kind])) or f"no field with kind {kind!r}"
    return ValueError(f"{path}.{key}: unknown key{meant or f'; allowed: {known}'}")


def build_objective(config: Config) -> Objective:
    """head.objective: one of ours by name, or the user's own as package.module:Class.

    Raises:
        ValueError: no such objective, or what it refuses.
    """
    path, spec = "head.objective", config.head.objective
    kind = spec if isinstance(spec, str) else str(spec.get("kind"))
    if ":" not in kind:
        return named_part(path, spec, OBJECTIVES)
    own = imported(path, kind)
    if not (isinstance(own, type) and issubclass(own, Objective) and is_dataclass(own)):
        raise ValueError(
            f"{path}: {kind!r} is {own!r}; allowed: a dataclass that is a subclass of mpsoftmax.Objective"
        )
    return named_part(path, spec, {kind: own})


def build_candidates(config: Config) -> Candidates:
    """head.candidates."""
    return named_part("head.candidates", config.head.candidates, CANDIDATES)


def build_negatives(config: Config) -> Negatives:
    """head.negatives."""
    return named_part("head.negatives", config.head.negatives, NEGATIVES)


def build_weights(config: Config) -> Weights:
    """head.weights."""
    return named_part("head.weights", config.head.weights, WEIGHTS)


def build_row_rule(config: Config) -> RowRule | None:
    """head.optimizer, whose learning rate defaults to the backbone's; None where no row is learned.

    Raises:
        ValueError: one is given although the class weights are not learned.
    """
    spec = config.head.optimizer
    if not build_weights(config).learned:
        if spec is not None:
            raise ValueError(
                f"head.optimizer: {spec!r}; allowed with head.weights={config.head.weights!r}: null, since "
                "centres follow the features and no gradient moves them"
            )
        return None
    given: dict[str, Any] = {"kind": spec or "sgd"} if not isinstance(spec, dict) else dict(spec)
    given.setdefault("lr", config.train.optimizer.lr)
    return named_part("head.optimizer", given, ROW_RULES)


def build_baskets(config: Config, sizes: Sequence[int]) -> Baskets | None:
    """head.baskets for datasets of that many classes; None for one dataset.

    Raises:
        ValueError: the rule is unknown or refused, or there are too many datasets.
    """
    if len(sizes) == 1:
        return None
    section = config.head.baskets or BasketsConfig()
    rule: Rule = named_part("head.baskets.rule", section.rule, RULES, {"after": RULES})
    margins = build_margins(config)
    try:
        return Baskets(sizes, rule, section.warmup, margins)
    except ValueError as error:
        raise ValueError(f"data.train: {error}") from error


def build_margins(config: Config) -> list[float | None] | None:
    """The margin of each dataset; None where none has its own.

    Raises:
        ValueError: the objective has no margin, or refuses one of them; names the dataset.
    """
    objective = build_objective(config)
    margins = [dataset.margin for dataset in config.data.datasets]
    for number, margin in enumerate(margins):
        try:
            per_basket(objective, [margin])
        except ValueError as error:
            raise ValueError(f"data.train[{number}].margin: {margin}: {error}") from error
    return None if margins.count(None) == len(margins) else margins


def head_parts(config: Config, sizes: Sequence[int]) -> dict[str, Any]:
    """What a head is made of, as arguments of ModelParallelSoftmax.

    Args:
        config: The configuration.
        sizes: Number of classes of each dataset.

    Raises:
        ValueError: a part is unknown, or refuses its fields; names the config path.
    """
    return {
        "objective": build_objective(config),
        "negatives": build_negatives(config),
        "candidates": build_candidates(config),
        "weights": build_weights(config),
        "baskets": build_baskets(config, sizes),
        "optimizer": build_row_rule(config),
    }
