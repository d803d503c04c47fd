"""Which kernel runs."""

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from mpsoftmax.kernels import blocked, native, native_library, reference
from mpsoftmax.kernels.problem import OnSums, Problem, Swept, ignored


class Kernel(Protocol):
    """The functions every kernel module has."""

    def sweep(
        self,
        problem: Problem,
        *,
        want_pull: bool,
        keep_bytes: int,
        spare: Tensor | None = None,
        on_sums: OnSums = ignored,
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

KERNELS = ("auto", "blocked", "native", "reference", "triton")
LEAST_CAPABILITY = (8, 0)  # bfloat16 tensor cores


def select(name: str, device: torch.device | None = None) -> Kernel:
    """The kernel of that name.

    Args:
        name: One of KERNELS.
        device: Where the rows live; default CPU.

    Raises:
        ValueError: as `chosen`.
    """
    name = chosen(name, torch.device("cpu") if device is None else device)
    if name == "triton":
        from mpsoftmax.kernels import triton_sweep

        return triton_sweep
    if name == "native":
        return native
    return reference if name == "reference" else blocked


def chosen(name: str, device: torch.device) -> str:
    """The name, or what `auto` stands for with rows on `device`.

    That is `native` on a CPU where it was built, else `blocked`: nobody has measured Triton's kernels on
    hardware yet, so they run for who asks for them (docs/kernels.md). Within `triton` a problem's shape and
    dtypes decide its way: mpsoftmax.kernels.triton_launch.way_of.

    Raises:
        ValueError: `name` is not one of KERNELS; or is `native` or `triton` where it cannot run; or is
            `triton`, and it and `reference` do not agree on a small problem (asked once a process and
            device).
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: {name!r} is not known; allowed: {', '.join(KERNELS)}")
    if name == "auto":
        reason = native_obstacle(device)
        if reason is not None and device.type == "cpu" and native_library.LIBRARY.exists():
            warn_once(reason)
        return "native" if reason is None else "blocked"
    if reason := obstacle(name, device):
        more = "" if name == "native" or native_obstacle(device) else ", native"
        raise ValueError(f"kernel: {name!r} {reason}; allowed here: auto, blocked{more}, reference")
    return name


def obstacle(name: str, device: torch.device) -> str | None:
    """Why a kernel cannot be taken for rows that live on `device`; None if it can."""
    if name == "native":
        return native_obstacle(device)
    if name != "triton":
        return None
    reason = triton_obstacle(device)
    if reason is None and device.type == "cuda":
        from mpsoftmax.kernels import triton_check

        trouble = triton_check.disagreement(device)
        return None if trouble is None else f"on {str(device)!r} {trouble}"
    return reason


def row_update(kernel: Kernel) -> ModuleType | None:
    """The module whose `update_rows` takes the class gradient and moves rows at once; None: none."""
    if kernel in (blocked, native, reference):
        return None
    from mpsoftmax.kernels import triton_update

    return triton_update


def row_mover(kernel: Kernel) -> Callable[..., None] | None:
    """The kernel's `move_rows`, which projects a gradient and moves rows (native.py); None: it has none."""
    return native.move_rows if kernel is native else None


@functools.cache
def warn_once(reason: str) -> None:
    """Say that a library is here and is not used, once a process and reason."""
    logger.warning("head.kernel: auto is blocked, which takes longer: native %s", reason)


def native_obstacle(device: torch.device) -> str | None:
    """Why compiled code for CPUs cannot run on rows that live on `device`; None if it can."""
    if device.type != "cpu":
        return f"is for rows on a CPU, and these are on {str(device)!r}"
    return native_library.obstacle()


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
