"""Which kernel runs: by name, or `auto`."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from mpsoftmax.kernels import blocked, reference
from mpsoftmax.kernels.problem import Problem, Swept


class Kernel(Protocol):
    """The functions every kernel module has."""

    def sweep(
        self, problem: Problem, *, want_pull: bool, keep_bytes: int, spare: Tensor | None = None
    ) -> Swept:
        """See mpsoftmax.kernels.problem."""
        ...

    def class_gradient(
        self, swept: Swept, weighted: Tensor, start: int, stop: int, out: Tensor
    ) -> Tensor:
        """See mpsoftmax.kernels.problem."""
        ...

    def nearest(
        self, problem: Problem, groups: Sequence[tuple[int, int]], k: int
    ) -> tuple[Tensor, Tensor]:
        """The k nearest classes of other baskets of every sample in each group: [B, G, k] twice."""
        ...


KERNELS = ("auto", "blocked", "reference")


def select(name: str) -> Kernel:
    """The kernel of that name; `auto` is `blocked` on every device.

    Raises:
        ValueError: `name` is not one of KERNELS.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: {name!r} is not known; allowed: {', '.join(KERNELS)}")
    return reference if name == "reference" else blocked
