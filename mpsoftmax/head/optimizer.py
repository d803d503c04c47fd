"""The torch.optim.Optimizer face of the head."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class Optimizer(torch.optim.Optimizer):
    """The torch optimiser behind `head.step()`: schedulers drive its param_groups.

    Its one parameter is the local weight [rows, D]; the state lives in the head, whose state_dict holds it.

    Args:
        weight: The local rows.
        defaults: Learning rate and the rule's other numbers.
        apply: Called by step() with the parameter group.
        drop: Called by zero_grad().
    """

    def __init__(
        self,
        weight: Tensor,
        defaults: Mapping[str, Any],
        apply: Callable[[Mapping[str, Any]], None],
        drop: Callable[[], None],
    ) -> None:
        self._apply_gradient, self._drop_gradient = apply, drop
        super().__init__([weight], dict(defaults))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply what the backward calls since the last step left.

        Raises:
            ValueError: a closure is given; the gradient is formed in here, once.
        """
        if closure is not None:
            raise ValueError("closure: not supported; allowed: None")
        self._apply_gradient(self.param_groups[0])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop what the backward calls since the last step left (a skipped step)."""
        self._drop_gradient()
