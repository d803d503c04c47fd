"""Which samples of which rank made a step's loss or gradient not finite.

Looked for only after a step was skipped, in the order in which trouble shows: features that are not finite,
gradients by features that are not finite, and else a backward pass through the backbone that overflows, which
is run again on each rank alone, for ever smaller groups of its samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.backbones.execution import lowered
from mpsoftmax.comm import Comm
from mpsoftmax.data.loader import Batch

MAX_NAMED = 8
"""Samples named for each rank."""


@dataclass
class MicroBatch:
    """One micro-batch of this rank, and what its passes leave behind.

    Attributes:
        batch: Images and labels.
        first: Stream position of the first.
        features: [b, D] detached; None before the forward pass.
        gradient: [b, D] gradient by the features, loss scale included; None where none came.
    """

    batch: Batch
    first: int
    features: Tensor | None = None
    gradient: Tensor | None = None

    def watch(self, features: Tensor) -> None:
        """Keep the features, and their gradient when it comes."""
        self.features = features.detach()
        if features.requires_grad:
            features.register_hook(self._take)

    def _take(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()


@dataclass(frozen=True)
class Sample:
    """One sample by its place in the stream."""

    position: int
    label: int


@dataclass(frozen=True)
class Culprits:
    """What is known about a skipped step; the same on all ranks.

    Attributes:
        where: features, gradient by features, or backward pass; unknown where nothing local explains it.
        samples: Rank -> its samples, the first MAX_NAMED of them.
        numbers: Rank -> how many there are.
    """

    where: str
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line."""
        if not self.samples:
            return "on no rank did features or gradients explain it: look at the class rows"
        return f"not finite: {self.where} of " + "; ".join(
            f"rank {rank}: {named(samples, self.numbers[rank])}"
            for rank, samples in self.samples.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        samples = [
            {"rank": rank, "position": sample.position, "label": sample.label}
            for rank, listed in self.samples.items()
            for sample in listed
        ]
        return {"where": self.where, "samples": samples, "num_samples": sum(self.numbers.values())}


def named(samples: Sequence[Sample], number: int) -> str:
    """Samples in words."""
    text = ", ".join(f"sample {one.position} (class {one.label})" for one in samples)
    return text + (f" and {number - len(samples)} more" if number > len(samples) else "")


def find_culprits(
    passed: Sequence[MicroBatch],
    net: nn.Module,
    images: Callable[[Batch], Tensor],
    autocast: torch.dtype | None,
    comm: Comm,
) -> Culprits:
    """Name them; collective, and without a trace in net, gradients or random generators.

    Args:
        passed: The micro-batches of the step.
        net: The backbone as it was in the step, whole.
        images: What the backbone is given of a batch.
        autocast: Under which it runs.
        comm: The ranks.
    """

    def in_backward(one: MicroBatch) -> Tensor:
        return overflowing(net, images(one.batch), one.gradient, autocast)

    for where, rows in (
        ("features", lambda one: bad_rows(one.features)),
        ("gradient by features", lambda one: bad_rows(one.gradient)),
        ("backward pass", in_backward),
    ):
        own = [
            Sample(one.first + place, int(one.batch.labels[place]))
            for one in passed
            for place in rows(one).tolist()
        ]
        everyone = comm.share(([(s.position, s.label) for s in own[:MAX_NAMED]], len(own)))
        if any(number for _, number in everyone):
            listed = {r: [Sample(*s) for s in some] for r, (some, n) in enumerate(everyone) if n}
            return Culprits(where, listed, {r: n for r, (_, n) in enumerate(everyone) if n})
    return Culprits("unknown")


def bad_rows(rows: Tensor | None) -> Tensor:
    """int64 [k]: rows of [b, D] that are not finite; none of None."""
    if rows is None:
        return torch.zeros(0, dtype=torch.int64)
    return torch.nonzero(~rows.isfinite().all(1))[:, 0].cpu()


def overflowing(
    net: nn.Module, images: Tensor, gradient: Tensor | None, autocast: torch.dtype | None
) -> Tensor:
    """int64 [k]: samples whose part of the backward pass alone gives a parameter an overflowing gradient.

    Batch statistics couple samples in the forward pass, which is the step's; the backward pass is linear in
    the features' gradient, which is cut sample by sample.
    """
    if gradient is None or not len(images):
        return torch.zeros(0, dtype=torch.int64)
    parameters = {
        name: p.detach().requires_grad_(p.requires_grad) for name, p in net.named_parameters()
    }
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    wanted = [p for p in parameters.values() if p.requires_grad]
    devices = _devices(images)
    with torch.random.fork_rng(devices), torch.enable_grad(), lowered(images.device, autocast):
        features = torch.func.functional_call(net, {**parameters, **buffers}, (images,))

    def overflows(low: int, high: int) -> bool:
        part = torch.zeros_like(gradient)
        part[low:high] = gradient[low:high]
        found = torch.autograd.grad(
            features, wanted, part.to(features.dtype), retain_graph=True, allow_unused=True
        )
        return any(not bool(g.isfinite().all()) for g in found if g is not None)

    return torch.tensor(bisect(overflows, 0, len(images)), dtype=torch.int64)


def _devices(images: Tensor) -> list[int]:
    """Whose random generators the pass draws from, besides the CPU's."""
    return [images.device.index or 0] if images.device.type == "cuda" else []


def bisect(bad: Callable[[int, int], bool], low: int, high: int) -> list[int]:
    """Places in low..high-1 that are bad alone; all of a group whose halves are not bad by themselves."""
    if low >= high or not bad(low, high):
        return []
    if high - low == 1:
        return [low]
    middle = (low + high) // 2
    found = bisect(bad, low, middle) + bisect(bad, middle, high)
    return found or list(range(low, high))
