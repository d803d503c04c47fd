"""The backbone's memory and work, from running it on tensors that have shapes and no values.

One forward and backward under torch's FakeTensorMode at the batch asked for: every storage that an
operation makes is followed until it is freed. Workspaces inside convolutions (oneDNN, cuDNN) are not seen,
nor what a GPU's own kernels keep beside. A backbone of the user's own is run with real values, at two small
batches, and its cost taken as linear in the batch.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mpsoftmax.plan.memory import ALWAYS, Item, phases

LEAST_BATCH = 2  # batch norm needs two samples
PROBES = (2, 4)
OPTIMISER_STATES = {"sgd": 1, "adamw": 2}


class Storages(TorchDispatchMode):
    """Follows every storage that operations make.

    Attributes:
        peak: Most bytes alive at once so far.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._sizes: dict[StorageWeakRef, int] = {}
        self._known = {StorageWeakRef(tensor.untyped_storage()) for tensor in known}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run the operation and note what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in self._known:
                    self._sizes[reference] = storage.nbytes()
        self.peak = max(self.peak, self.alive())
        return out

    def alive(self) -> int:
        """Bytes alive now."""
        self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}
        return sum(self._sizes.values())


@dataclass(frozen=True)
class BackboneCost:
    """Of one rank's micro-batch. Bytes and floating-point operations."""

    parameter_bytes: float
    """All of them, with buffers."""
    gradient_bytes: float
    """Those that are trained."""
    kept_bytes: float
    """Alive between forward and backward."""
    peak_bytes: float
    """Most alive during forward and backward, gradients among them."""
    forward_flops: float
    """Products and convolutions of one forward."""


def probe(
    build: Callable[[], nn.Module],
    image_size: tuple[int, int],
    batch: int,
    *,
    bf16: bool,
    fake: bool,
) -> BackboneCost:
    """Measure one forward and backward of `batch` images."""
    mode = FakeTensorMode() if fake else contextlib.nullcontext()
    with mode:
        net = build().train()
        known = [*net.parameters(), *net.buffers()]
        images = torch.zeros(batch, 3, *image_size)
        with FlopCounterMode(display=False) as flops, Storages([*known, images]) as storages:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = net(images)
            forward = flops.get_total_flops()
            kept = storages.alive()
            out.float().sum().backward()
            peak = storages.peak
    trained = [p for p in net.parameters() if p.requires_grad]
    return BackboneCost(
        parameter_bytes=sum(tensor.numel() * tensor.element_size() for tensor in known),
        gradient_bytes=sum(tensor.numel() * tensor.element_size() for tensor in trained),
        kept_bytes=kept,
        peak_bytes=peak,
        forward_flops=forward,
    )


def backbone_cost(
    build: Callable[[], nn.Module],
    image_size: tuple[int, int],
    batch: int,
    *,
    bf16: bool = False,
    fake: bool = True,
) -> BackboneCost:
    """Cost of one micro-batch.

    Args:
        build: Makes the net.
        image_size: Height and width in pixels.
        batch: Images of one rank's micro-batch.
        bf16: Whether the forward runs under autocast.
        fake: Whether it can run without values.
    """
    if fake:
        return probe(build, image_size, max(LEAST_BATCH, batch), bf16=bf16, fake=True)
    low, high = (probe(build, image_size, size, bf16=bf16, fake=False) for size in PROBES)

    def at(field: str) -> float:
        first, second = getattr(low, field), getattr(high, field)
        slope = (second - first) / (PROBES[1] - PROBES[0])
        return first + slope * (batch - PROBES[0])

    # At small batches the peak may be the gradients'; at large ones it is at least what is kept.
    kept = at("kept_bytes")
    return replace(
        low,
        kept_bytes=kept,
        peak_bytes=max(kept, at("peak_bytes")),
        forward_flops=at("forward_flops"),
    )


def backbone_items(
    cost: BackboneCost, optimizer: str, world: int, image_bytes: float
) -> list[Item]:
    """The backbone's items of memory on one rank.

    Args:
        cost: Of its micro-batch.
        optimizer: train.optimizer.kind.
        world: With several ranks DDP keeps gradients once more, in its buckets.
        image_bytes: Of the micro-batch's images as floats.
    """
    states = OPTIMISER_STATES[optimizer] * cost.gradient_bytes
    until_backward = phases("backbone forward", "head backward")
    after = phases("backbone update", "head step")
    buckets = cost.gradient_bytes if world > 1 else 0.0
    return [
        Item("backbone parameters", cost.parameter_bytes, ALWAYS),
        Item("backbone optimiser state", states, ALWAYS),
        Item("backbone gradients, DDP's copy", buckets, ALWAYS),
        Item("images", image_bytes, phases("backbone forward", "backbone backward")),
        Item("backbone activations", cost.kept_bytes, until_backward, estimated=True),
        Item(
            "backbone backward: activations, gradients, work",
            cost.peak_bytes, phases("backbone backward"), estimated=True,
        ),
        Item("backbone gradients", cost.gradient_bytes, after),
    ]  # fmt: skip
