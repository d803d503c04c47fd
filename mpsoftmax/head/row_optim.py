"""Row-wise optimisers: how one tile of class rows moves, given its gradient.

A rule works on a tile of rows in place and knows no shard and no process. `RowSGD` and `RowAdamW` equal
torch.optim.SGD and torch.optim.AdamW on the rows they are given (tests/head/test_row_optim.py). For rows
that a sampled step leaves out, `transition` says how such a row would have moved with a zero gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim.sgd import sgd

from mpsoftmax.kernels.row_update import Rule

Hyper = Mapping[str, float]


class RowRule(Protocol):
    """A row-wise optimiser."""

    buffers: ClassVar[tuple[str, ...]]
    """Names of the [rows, D] states beside the weight."""
    hyper: ClassVar[tuple[str, ...]]
    """Names of the numbers that `transition` depends on."""

    @property
    def lr(self) -> float:
        """Learning rate at factor 1 of a schedule."""
        ...

    def defaults(self) -> dict[str, Any]:
        """The parameter group's values, named as torch's optimiser of that kind names them."""
        ...

    def numbers(self, group: Mapping[str, Any]) -> dict[str, float]:
        """What `update` and `transition` take, from the parameter group as it is now."""
        ...

    def update(
        self, rows: Tensor, states: Sequence[Tensor], gradient: Tensor, hyper: Hyper, step: Tensor
    ) -> None:
        """Move rows [n, D] and their states in place by gradient [n, D] (may be overwritten).

        `step` [n] counts the updates of each row, this one included.
        """
        ...

    def transition(self, hyper: Hyper) -> np.ndarray:
        """Matrix that takes (row, *states) over one step without gradient, [k, k] float64."""
        ...


def check(name: str, field: str, value: float, low: float, high: float) -> None:
    """Raise unless low <= value < high, naming the field, the value and the range."""
    if not low <= value < high:
        raise ValueError(f"{name}.{field}: {value!r}; allowed: {low} <= {field} < {high}")


@dataclass(frozen=True)
class RowSGD:
    """SGD with momentum and L2 decay, torch's order: m <- mu m + g + wd w; w <- w - lr m."""

    buffers: ClassVar[tuple[str, ...]] = ("momentum",)
    hyper: ClassVar[tuple[str, ...]] = ("lr", "momentum", "weight_decay")
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        """Check the fields."""
        check("RowSGD", "lr", self.lr, 0.0, float("inf"))
        check("RowSGD", "momentum", self.momentum, 0.0, 1.0)
        check("RowSGD", "weight_decay", self.weight_decay, 0.0, float("inf"))

    def defaults(self) -> dict[str, Any]:
        """See RowRule."""
        return asdict(self)

    def numbers(self, group: Mapping[str, Any]) -> dict[str, float]:
        """See RowRule."""
        return {name: float(group[name]) for name in self.hyper}

    def update(
        self, rows: Tensor, states: Sequence[Tensor], gradient: Tensor, hyper: Hyper, step: Tensor
    ) -> None:
        """See RowRule."""
        sgd(
            [rows],
            [gradient],
            list(states),
            fused=True,  # one pass over memory instead of four
            momentum=hyper["momentum"],
            weight_decay=hyper["weight_decay"],
            lr=hyper["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def transition(self, hyper: Hyper) -> np.ndarray:
        """See RowRule."""
        lr, mu, decay = hyper["lr"], hyper["momentum"], hyper["weight_decay"]
        return np.array([[1.0 - lr * decay, -lr * mu], [decay, mu]])


@dataclass(frozen=True)
class RowAdamW:
    """AdamW with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101), torch's arithmetic.

    Rows left out of a sampled step: `frozen` keeps row and moments, and bias correction counts the row's own
    updates; `lazy` decays moments and row as the skipped steps would have, but does not apply the updates
    those moments would have caused (as torch.optim.SparseAdam).
    """

    buffers: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    hyper: ClassVar[tuple[str, ...]] = ("lr", "beta1", "beta2", "weight_decay")
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        """Check the fields."""
        check("RowAdamW", "lr", self.lr, 0.0, float("inf"))
        if len(self.betas) != 2:
            raise ValueError(f"RowAdamW.betas: {self.betas!r}; allowed: two numbers")
        check("RowAdamW", "betas[0]", self.betas[0], 0.0, 1.0)
        check("RowAdamW", "betas[1]", self.betas[1], 0.0, 1.0)
        check("RowAdamW", "eps", self.eps, 0.0, float("inf"))
        check("RowAdamW", "weight_decay", self.weight_decay, 0.0, float("inf"))

    def defaults(self) -> dict[str, Any]:
        """See RowRule."""
        return asdict(self)

    def numbers(self, group: Mapping[str, Any]) -> dict[str, float]:
        """See RowRule."""
        beta1, beta2 = group["betas"]
        plain = {name: float(group[name]) for name in ("lr", "eps", "weight_decay")}
        return {**plain, "beta1": float(beta1), "beta2": float(beta2)}

    def update(
        self, rows: Tensor, states: Sequence[Tensor], gradient: Tensor, hyper: Hyper, step: Tensor
    ) -> None:
        """See RowRule."""
        first, second = states
        beta1, beta2 = hyper["beta1"], hyper["beta2"]
        rows.mul_(1.0 - hyper["lr"] * hyper["weight_decay"])
        first.lerp_(gradient, 1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        age = step.to(torch.float64)
        correction1 = (1.0 - beta1**age).to(rows.dtype)[:, None]
        correction2 = (1.0 - beta2**age).sqrt().to(rows.dtype)[:, None]
        denominator = torch.sqrt(second, out=gradient).div_(correction2).add_(hyper["eps"])
        rows.sub_((first / correction1).div_(denominator), alpha=hyper["lr"])

    def transition(self, hyper: Hyper) -> np.ndarray:
        """See RowRule."""
        decay = 1.0 - hyper["lr"] * hyper["weight_decay"]
        return np.diag([decay, hyper["beta1"], hyper["beta2"]])


def kernel_rule(rule: RowRule) -> Rule | None:
    """The rule's name in kernels that move rows; None: they do not have it."""
    names: dict[type, Rule] = {RowSGD: "sgd", RowAdamW: "adamw"}
    return names.get(type(rule))


@dataclass(frozen=True)
class NoUpdate:
    """The rule of rows that follow something else than a gradient: no state, and a learning rate of 0."""

    buffers: ClassVar[tuple[str, ...]] = ()
    hyper: ClassVar[tuple[str, ...]] = ()

    @property
    def lr(self) -> float:
        """0: nothing reads it."""
        return 0.0

    def defaults(self) -> dict[str, Any]:
        """See RowRule: schedulers may drive the group; nothing reads it."""
        return {"lr": 0.0}

    def numbers(self, group: Mapping[str, Any]) -> dict[str, float]:
        """See RowRule."""
        return {}

    def update(
        self, rows: Tensor, states: Sequence[Tensor], gradient: Tensor, hyper: Hyper, step: Tensor
    ) -> None:
        """Refuses: such rows have no gradient."""
        raise RuntimeError("rows of class centres move by their features, not by a gradient")

    def transition(self, hyper: Hyper) -> np.ndarray:
        """See RowRule."""
        return np.eye(1)
