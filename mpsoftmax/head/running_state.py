"""Running statistics of an objective: the same on all ranks, moved only by a training step that counts."""

import math

import torch
from torch import Tensor

from mpsoftmax.head.objectives.base import Objective


class RunningState:
    """Committed statistics, and those of the backward calls since the last step.

    Args:
        objective: Whose statistics.
    """

    def __init__(self, objective: Objective) -> None:
        self.committed: dict[str, float] = objective.initial_state()
        self._pending: dict[str, float] | None = None
        self._objective = objective

    def advanced(self, t: Tensor, norm: Tensor) -> dict[str, float]:
        """The statistics with one more training batch; nothing moves yet."""
        base = self.committed if self._pending is None else self._pending
        return self._objective.advance(base, t, norm)

    def hold(self, t: Tensor, norm: Tensor, negatives: Tensor) -> None:
        """A backward call counts this batch: t, norm, negatives' log-sum-exp [n]."""
        self._pending = self._objective.advance_after(self.advanced(t, norm), t, negatives)

    def commit(self) -> None:
        """The step counts; a non-finite value is dropped."""
        if self._pending is not None:
            for name, value in self._pending.items():
                if math.isfinite(value):
                    self.committed[name] = value
        self._pending = None

    def drop(self) -> None:
        """The step does not count."""
        self._pending = None

    def tensor(self) -> Tensor:
        """float64 [k] in the order of names."""
        return torch.tensor(list(self.committed.values()), dtype=torch.float64)

    def load(self, values: Tensor) -> None:
        """What `tensor` gave.

        Raises:
            ValueError: as check.
        """
        self.check(values)
        self.committed = dict(zip(self.committed, values.tolist(), strict=True))
        self._pending = None

    def check(self, values: Tensor) -> None:
        """Raise ValueError where the values belong to an objective with other statistics."""
        names = list(self.committed)
        if values.shape != (len(names),):
            raise ValueError(
                f"head.objective_state: {values.numel()} numbers; allowed: {len(names)} ({', '.join(names)})"
            )
        self._objective.check_state(dict(zip(names, values.tolist(), strict=True)))
