"""The largest class count that fits, and what other settings would give."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mpsoftmax.head.candidates import Uniform
from mpsoftmax.plan.head_memory import head_items
from mpsoftmax.plan.machines import Machine
from mpsoftmax.plan.memory import Item, Memory
from mpsoftmax.plan.shape import HeadShape
from mpsoftmax.plan.times import head_time

MOST_CLASSES = 2**36
SAMPLED_RATE = 0.1


def fits(shape: HeadShape, backbone: Sequence[Item], machine: Machine) -> bool:
    """Whether a rank's peak stays within its memory."""
    return machine.holds(Memory([*head_items(shape), *backbone]).peak())


def largest_classes(shape: HeadShape, backbone: Sequence[Item], machine: Machine) -> int:
    """Most classes over all ranks that fit the device; 0 where none do, MOST_CLASSES where any do."""
    low, high = 0, MOST_CLASSES
    if fits(shape.with_classes(high), backbone, machine):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(shape.with_classes(middle), backbone, machine):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Alternative:
    """Other settings, and what they come to."""

    settings: str
    peak_bytes: float
    host_bytes: float
    step_s: float
    fits: bool
    largest_classes: int


def judge(
    settings: str, shape: HeadShape, backbone: Sequence[Item], machine: Machine
) -> Alternative:
    """What a head comes to on a machine."""
    memory = Memory([*head_items(shape), *backbone])
    return Alternative(
        settings=settings,
        peak_bytes=memory.peak() + machine.reserved,
        host_bytes=memory.peak("host") + memory.peak("disk"),
        step_s=head_time(shape, machine).predicted_s,
        fits=machine.holds(memory.peak()),
        largest_classes=largest_classes(shape, backbone, machine),
    )


def alternatives(shape: HeadShape, backbone: Sequence[Item], machine: Machine) -> list[Alternative]:
    """Single changes that the head's parts allow, each judged; then storage, which needs sampling."""
    shapes: dict[str, HeadShape] = {}
    bfloat16 = torch.bfloat16
    if shape.compute_dtype != bfloat16:
        shapes["head.compute_dtype=bfloat16"] = replace(shape, compute_dtype=bfloat16)
    if shape.row_dtype != bfloat16:
        shapes["head.row_dtype=bfloat16"] = replace(shape, row_dtype=bfloat16)
    if shape.kept_bytes:
        shapes["head.e_budget_bytes=0"] = replace(shape, e_budget_bytes=0)
    if shape.e_bytes > shape.e_budget_bytes and shape.parts.weights.learned:
        label = f"head.e_budget_bytes={shape.e_bytes} (all of E)"
        shapes[label] = replace(shape, e_budget_bytes=shape.e_bytes)
    sampled = shape
    if not shape.sampled and takes_sampling(shape):
        sampled = replace(shape, parts=replace(shape.parts, candidates=Uniform(SAMPLED_RATE)))
        label = f"head.candidates={{kind: uniform, rate: {SAMPLED_RATE}}}"
        shapes[label] = sampled
    if sampled.sampled and shape.storage == "device" and shape.parts.weights.learned:
        prefix = "" if sampled is shape else "uniform as above, "
        for storage in ("host", "mapped"):
            label = f"{prefix}head.storage={storage}"
            shapes[label] = replace(sampled, storage=storage, prefetch=True)
    return [judge(label, other, backbone, machine) for label, other in shapes.items()]


def takes_sampling(shape: HeadShape) -> bool:
    """Whether sampled classes go with the mining rule, and no part samples already."""
    rule = shape.rule
    plain = type(shape.parts.candidates).__name__ == "All"
    return plain and (rule is None or not rule.num_dropped or rule.drop_above > -1.0)


def remarks(shape: HeadShape, machine: Machine) -> list[str]:
    """What the floors say."""
    time, out = head_time(shape, machine), []
    if time.bound == "network":
        out.append(
            "the network is the floor: its bytes do not depend on the classes, so fewer ranks, or more "
            "samples a rank, cost less for this head"
        )
    if time.bound == "memory":
        out.append(
            "memory traffic of rows is the floor: sampled candidates and bfloat16 rows move less, a larger "
            "batch uses each row more often"
        )
    if time.bound == "FLOP" and shape.compute_dtype == torch.float32 and machine.kind == "cuda":
        out.append("float32 products are the floor: bfloat16 products run on tensor cores")
    if shape.accumulation > 1 and shape.kept_bytes < shape.e_bytes:
        out.append("E of all micro-batches does not fit its budget: the rest is computed again")
    if shape.has_running_maximum:
        out.append(
            "no constant shift fits: a running maximum is kept, with more passes over logits"
        )
    return out
