"""Which kernel runs: by name, or `auto`."""

import importlib.util
import logging
from collections.abc import Sequence
from typing import Protocol

import torch
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


logger = logging.getLogger(__name__)

KERNELS = ("auto", "blocked", "reference", "triton")
LEAST_CAPABILITY = (8, 0)  # bfloat16 tensor cores


def select(name: str, device: torch.device | None = None) -> Kernel:
    """The kernel of that name.

    `auto` is `triton` on a CUDA device where it can run and, on a small problem, agrees with `reference`
    (asked once a process; a warning says where it does not), else `blocked`. Within `triton` a problem's
    shape and dtypes decide its way: mpsoftmax.kernels.triton_launch.way_of.

    Args:
        name: One of KERNELS.
        device: Where the rows live; default CPU.

    Raises:
        ValueError: `name` is not one of KERNELS, or is `triton` where it cannot run.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: {name!r} is not known; allowed: {', '.join(KERNELS)}")
    if name in ("blocked", "reference"):
        return reference if name == "reference" else blocked
    device = torch.device("cpu") if device is None else device
    obstacle = triton_obstacle(device)
    if name == "triton" and obstacle:
        raise ValueError(f"kernel: 'triton' {obstacle}; allowed here: auto, blocked, reference")
    if obstacle or (name == "auto" and device.type != "cuda"):
        return blocked
    from mpsoftmax.kernels import triton_check, triton_sweep

    trouble = triton_check.disagreement(device) if name == "auto" else None
    if trouble is not None:
        logger.warning("kernel: auto is blocked on %s: triton %s", device, trouble)
        return blocked
    return triton_sweep


def triton_obstacle(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on rows that live on `device`; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed (the extra `gpu`)"
    from triton import knobs

    if device.type == "cpu" and knobs.runtime.interpret:
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return (
            f"needs an NVIDIA GPU, and the rows are on {str(device)!r} (on a CPU it runs under "
            "TRITON_INTERPRET=1 only, for tests)"
        )
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        return (
            f"needs compute capability 8.0 or more, and {str(device)!r} has {found[0]}.{found[1]}"
        )
    return None
