"""From a configuration and a machine to a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpsoftmax.config import Config
from mpsoftmax.data.order import share
from mpsoftmax.head.arguments import Description
from mpsoftmax.plan.advice import Alternative, alternatives, largest_classes, remarks
from mpsoftmax.plan.backbone import BackboneCost, backbone_cost, backbone_items
from mpsoftmax.plan.collectives import Traffic, collectives
from mpsoftmax.plan.head_memory import head_items
from mpsoftmax.plan.machines import Machine
from mpsoftmax.plan.memory import Item, Memory
from mpsoftmax.plan.shape import HeadShape
from mpsoftmax.plan.times import HeadTime, head_time
from mpsoftmax.plan.work import Work, head_work
from mpsoftmax.train.build import build_net, local_capacity, row_dtype
from mpsoftmax.train.datasets import open_training_images, sizes_of
from mpsoftmax.train.duplicates import with_known_pairs
from mpsoftmax.train.parts import head_parts

BACKWARD_FLOPS = 2  # of a backward pass, in forwards
RECOMPUTED_FLOPS = 1  # of activation checkpointing


@dataclass(frozen=True)
class Plan:
    """What one rank, that with the largest shard, needs and does in a step."""

    shape: HeadShape
    machine: Machine
    memory: Memory
    traffic: Traffic
    work: Work
    time: HeadTime
    backbone: BackboneCost
    backbone_s: float
    largest_classes: int
    alternatives: list[Alternative]
    remarks: list[str]

    @property
    def fits(self) -> bool:
        """Whether the peak and the reserve stay within the device's memory."""
        return self.machine.holds(self.memory.peak())


def class_sizes(config: Config, classes: str | None) -> tuple[int, ...]:
    """Classes of each dataset: as given (`N` or `N,M,...`), else counted by opening data.train.

    Raises:
        ValueError: not as many numbers as datasets, or not numbers; or the data cannot be opened.
    """
    if classes is None:
        return sizes_of(open_training_images(config))
    words, num = classes.split(","), len(config.data.datasets)
    good = all(word.strip().isascii() and word.strip().isdigit() for word in words)
    if not good or len(words) != num or min(int(word) for word in words) < 1:
        allowed = "a whole number >= 1" if num == 1 else f"{num} of them, one a dataset, as N,M,..."
        raise ValueError(f"--classes: {classes!r}; allowed: {allowed}")
    return tuple(int(word) for word in words)


def ranks_per_node(ranks: int, nodes: int | None) -> int | None:
    """Ranks of one node; None (the machine's own) where the number of nodes is not given.

    Raises:
        ValueError: not at least one rank a node.
    """
    if ranks < 1:
        raise ValueError(f"--gpus: {ranks}; allowed: at least 1")
    if nodes is None:
        return None
    if not 1 <= nodes <= ranks:
        raise ValueError(f"--nodes: {nodes}; allowed: 1 to --gpus={ranks}")
    return -(-ranks // nodes)


def head_shape(config: Config, sizes: Sequence[int], world: int, device: str) -> HeadShape:
    """The head that `mpsoftmax train` would build."""
    head, train = config.head, config.train
    parts = head_parts(with_known_pairs(config, None), list(sizes))
    try:
        described = Description.of(
            **parts, untouched=head.untouched, num_classes=sum(sizes), storage=head.storage
        )
    except ValueError as error:
        raise ValueError(f"head: {error}") from error
    low, high = share(train.batch_size, 0, train.accumulation)
    return HeadShape(
        parts=described,
        classes=sum(sizes),
        dim=config.backbone.embedding_dim,
        world=world,
        samples=high - low,
        capacity=local_capacity(config, world),
        accumulation=train.accumulation,
        untouched=head.untouched,
        compute_dtype=getattr(torch, head.compute_dtype),
        row_dtype=row_dtype(head),
        e_budget_bytes=head.e_budget_bytes,
        storage=head.storage,
        prefetch=head.storage != "device",
        device=device,
    )


def lowered(config: Config, machine: Machine) -> bool:
    """Whether the backbone's products are in 16 bits; `auto` as GPUs with bfloat16 resolve it."""
    precision = config.train.precision
    return precision in ("bf16", "fp16") or (precision == "auto" and machine.kind == "cuda")


def backbone_of(config: Config, batch: int, *, bf16: bool) -> BackboneCost:
    """Cost of the configured backbone for one micro-batch of a rank."""
    return backbone_cost(
        lambda: build_net(config),
        config.data.image_size,
        batch,
        bf16=bf16,
        fake=":" not in config.backbone.name,
    )


def image_bytes(config: Config, batch: int) -> float:
    """A micro-batch as uint8 and as float32."""
    height, width = config.data.image_size
    return 5.0 * batch * 3 * height * width


def make_plan(config: Config, sizes: Sequence[int], world: int, machine: Machine) -> Plan:
    """Plan of a run on `world` ranks.

    Raises:
        ValueError: a part of the configuration does not fit, or there are more ranks than samples.
    """
    shape = head_shape(config, sizes, world, machine.kind)
    bf16 = lowered(config, machine)
    cost = backbone_of(config, shape.capacity, bf16=bf16)
    images = image_bytes(config, shape.capacity)
    around: list[Item] = backbone_items(cost, config.train.optimizer.kind, world, images)
    passes = 1 + BACKWARD_FLOPS + RECOMPUTED_FLOPS * config.backbone.activation_checkpointing
    dtype = "bfloat16" if bf16 else "float32"
    flops = passes * cost.forward_flops * shape.accumulation
    return Plan(
        shape=shape,
        machine=machine,
        memory=Memory([*head_items(shape), *around]),
        traffic=collectives(shape),
        work=head_work(shape, machine.cache),
        time=head_time(shape, machine),
        backbone=cost,
        backbone_s=flops / (machine.flops[dtype] * machine.share),
        largest_classes=largest_classes(shape, around, machine),
        alternatives=alternatives(shape, around, machine),
        remarks=remarks(shape, machine),
    )
