"""What a kernel that moves rows itself is told.

The rows' gradient is what mpsoftmax.head.gradient.TileSource writes and mpsoftmax.head.tile_move projects;
the rules are those of mpsoftmax.head.row_optim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import Pairs

Rule = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class OwnPulls:
    """What the samples add to the gradient of their own classes' rows."""

    unit: Tensor
    """float32 [N, D]: unit features of all samples."""
    weight: Tensor
    """float32 [N]: what multiplies them."""
    owners: Pairs
    """Which sample's own row lies where among the swept rows."""


@dataclass(frozen=True)
class Rows:
    """The rows that move, and their optimiser state."""

    weight: Tensor
    """float32 [rows, D]."""
    states: tuple[Tensor, ...]
    """float32 [rows, D]: (momentum,), or AdamW's (first, second) moments."""
    index: Tensor | None
    """int64 [R]: which row each swept row is, none of them twice; None: they are the rows, in order."""


def numbers_of(rule: Rule, hyper: Mapping[str, float]) -> dict[str, float]:
    """What a rule's arithmetic takes: lr, decay, kept, beta1 (or momentum), beta2, rest1, rest2, eps.

    Differences from 1 (kept = 1 - lr decay, rest = 1 - beta) are taken here in float64: kernels see float32,
    where 1 - 0.999 is off by 1e-5 of itself.
    """
    beta1 = hyper["momentum"] if rule == "sgd" else hyper["beta1"]
    beta2 = 0.0 if rule == "sgd" else hyper["beta2"]
    return {
        "lr": hyper["lr"],
        "decay": hyper["weight_decay"],
        "kept": 1.0 - hyper["lr"] * hyper["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "rest1": 1.0 - beta1,
        "rest2": 1.0 - beta2,
        "eps": 0.0 if rule == "sgd" else hyper["eps"],
    }


def bias_corrections(hyper: Mapping[str, float], age: Tensor) -> tuple[Tensor, Tensor]:
    """AdamW's 1 - beta1^t and sqrt(1 - beta2^t) of rows after `age` int64 [n] updates: float32 [n] each."""
    wide = age.to(torch.float64)
    first = (1.0 - hyper["beta1"] ** wide).float()
    return first, (1.0 - hyper["beta2"] ** wide).sqrt().float()
