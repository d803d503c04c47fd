"""A head from its settings. Classes are looked up in mpsoftmax by name when a run needs them.

A part is written ["TopOne", {"tau": 0.3}]: the class, its arguments, which may be parts themselves.
"""

from collections.abc import Mapping
from typing import Any

from baskets import duplicate_pairs
from data import Benchmark
from torch import Tensor

import mpsoftmax

AXES = ("objective", "candidates", "negatives", "weights")


def build_part(value: Any) -> Any:
    """The object a part stands for; anything else as it is."""
    if not is_part(value):
        return value
    name, arguments = value
    return getattr(mpsoftmax, name)(**{key: build_part(given) for key, given in arguments.items()})


def is_part(value: Any) -> bool:
    """Whether a setting is a class's name and its arguments."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict)


def build_head(
    settings: Mapping[str, Any], benchmark: Benchmark, num_classes: int, seed: int
) -> mpsoftmax.ModelParallelSoftmax:
    """The head of a run.

    settings["head"] holds a part for each axis that is not at its default, "baskets" (a rule; its argument
    pairs="known" becomes the true duplicates), "warmup" (steps of own baskets only) and "untouched".
    """
    described = settings["head"]
    arguments = {axis: build_part(described[axis]) for axis in AXES if axis in described}
    if "weights" not in described or described["weights"][0] != "ClassCentres":
        arguments["optimizer"] = mpsoftmax.RowSGD(
            lr=settings.get("head_lr", settings["lr"]),
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
        )
    if "baskets" in described:
        arguments["baskets"] = mpsoftmax.Baskets(
            sizes=benchmark.basket_sizes,
            rule=build_part(with_known_pairs(described["baskets"], benchmark.identities)),
            warmup=described.get("warmup", 0),
        )
    return mpsoftmax.ModelParallelSoftmax(
        settings["dim"],
        num_classes,
        untouched=described.get("untouched", "frozen"),
        batch_capacity=settings["batch"],
        seed=seed,
        **arguments,
    )


def with_known_pairs(part: Any, identities: Tensor | None) -> Any:
    """A rule whose argument pairs="known" is replaced by the true duplicates, int64 [p, 2]."""
    name, arguments = part
    if arguments.get("pairs") != "known":
        return part
    assert identities is not None
    return [name, {**arguments, "pairs": duplicate_pairs(identities)}]
