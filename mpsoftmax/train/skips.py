"""Counting skipped steps: how many, how many in a row, and when to stop."""

from typing import Any

from torch import Tensor

from mpsoftmax.comm import AgreedError
from mpsoftmax.train.step import Outcome


class Skips:
    """Skipped steps of a run.

    Args:
        limit: train.max_skipped: as many in a row stop it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.total, self._in_a_row = 0, 0

    def count(self, outcome: Outcome) -> None:
        """Count one step, taken or skipped."""
        if outcome.culprits is None:
            self._in_a_row = 0
        else:
            self.total, self._in_a_row = self.total + 1, self._in_a_row + 1

    def check(self, step: int, outcome: Outcome) -> None:
        """Stop on all ranks where too many steps in a row were skipped.

        Raises:
            ValueError: says which, and why the last one was.
        """
        if outcome.culprits is not None and self._in_a_row >= self._limit:
            raise AgreedError(
                f"train.max_skipped: {self._in_a_row} steps in a row were skipped, the last one step {step}: "
                f"{describe(outcome)}; stopped, no weight has moved in them; lower the learning rate, warm "
                "up longer, or clip (train.clip_norm)"
            )

    def state(self) -> dict[str, int]:
        """For the checkpoint: JSON."""
        return {"total": self.total, "in_a_row": self._in_a_row}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """What `state` gave; older checkpoints have none.

        Raises:
            ValueError: it is damaged.
        """
        if state is None:
            return
        total, in_a_row = state.get("total"), state.get("in_a_row")
        if type(total) is not int or type(in_a_row) is not int or min(total, in_a_row) < 0:
            raise ValueError("checkpoint: state.json: skipped is damaged")
        self.total, self._in_a_row = total, in_a_row


def describe(outcome: Outcome) -> str:
    """Why a step was skipped, in one line."""
    numbers = {"loss": outcome.loss, "gradient norm": outcome.norm, "class rows": outcome.head_norm}
    bad = [f"{name} {value.item()}" for name, value in numbers.items() if not fine(value)]
    return f"{', '.join(bad) or 'class gradient'}; {outcome.culprits}"


def fine(value: Tensor | None) -> bool:
    """Whether a number is finite, or was not asked for."""
    return value is None or bool(value.isfinite().item())
