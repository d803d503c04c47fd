"""The planner's communication is what the head hands over, to the byte."""

import pytest
import torch

import mpsoftmax as mp
from mpsoftmax.head.arguments import Description
from mpsoftmax.plan.collectives import collectives
from mpsoftmax.plan.shape import HeadShape

DIM, CLASSES, LOCAL = 12, 29, (6, 3, 5)
SIZES = (9, 1, 8, 11)


def baskets(rule):
    return {"baskets": mp.Baskets(SIZES, rule=rule)}


HEADS = {
    "all": {},
    "uniform": {"candidates": mp.Uniform(0.4)},
    "dsoftmax_k": {"candidates": mp.DSoftmaxK(0.3)},
    "dsoftmax_b": {"objective": mp.DSoftmax(), "candidates": mp.DSoftmaxB(0.5)},
    "npcface": {"objective": mp.NPCFace(16.0)},
    "npcface, dsoftmax_k": {"objective": mp.NPCFace(16.0), "candidates": mp.DSoftmaxK(0.3)},
    "circle": {"objective": mp.CircleLoss(16.0)},
    "running maximum, circle": {"objective": mp.CircleLoss()},
    "adacos": {"objective": mp.AdaCos()},
    "curricularface": {"objective": mp.CurricularFace(16.0)},
    "running maximum": {"objective": mp.SphereFace(4, 5.0)},
    "running maximum, npcface": {"objective": mp.NPCFace(100.0)},
    "running maximum, uniform": {"objective": mp.SphereFace(), "candidates": mp.Uniform(0.4)},
    "filter": {"objective": mp.CosFace(16.0, 0.2), "negatives": mp.NoiseFilter(0.2)},
    "sub-centres": {"objective": mp.CosFace(16.0, 0.2), "weights": mp.SubCentres(3)},
    "centres": {"objective": mp.CosFace(16.0, 0.2), "weights": mp.ClassCentres()},
    "baskets, own": baskets(mp.OwnBasket()),
    "baskets, all": baskets(mp.AllDistinct()),
    "baskets, top_one": baskets(mp.TopOne(0.2)),
    "baskets, target_relative": baskets(mp.TargetRelative(0.2)),
    "baskets, top_k": baskets(mp.TopK(3)),
    "baskets, hardest": baskets(mp.Hardest(5)),
    "baskets, hardest after R2": baskets(mp.Hardest(5, mp.TargetRelative(0.1))),
    "baskets, npcface, top_one": {"objective": mp.NPCFace(16.0), **baskets(mp.TopOne(0.2))},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def counted(parts, capacity, dtype, forwards=1, **more):
    """Calls and bytes of one training step, of unequal batches with one ignored label each."""
    head = mp.ModelParallelSoftmax(
        DIM, CLASSES, **parts, **more, batch_capacity=capacity, compute_dtype=dtype,
        row_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
    )  # fmt: skip
    num = LOCAL[head.comm.rank]
    labels = torch.randint(0, CLASSES, (num,), generator=torch.Generator().manual_seed(num))
    labels[0] = -1
    head.comm.reset_counters()
    for _ in range(forwards):
        if more.get("storage", "device") != "device":
            head.prefetch(labels)
        head(torch.randn(num, DIM).requires_grad_(), labels).backward()
    head.step()
    return dict(head.comm.calls), dict(head.comm.payload_bytes)


def planned(parts, world, capacity, dtype, **more):
    known = {name: parts.get(name, "all") for name in ("candidates", "negatives")}
    described = Description.of(
        parts.get("objective", "arcface"), known["candidates"], known["negatives"],
        parts.get("baskets"), parts.get("weights", "learned"), None, "frozen", CLASSES,
    )  # fmt: skip
    shape = HeadShape(
        parts=described, classes=CLASSES, dim=DIM, world=world, samples=sum(LOCAL[:world]) - world,
        capacity=capacity or max(LOCAL[:world]), has_capacity=capacity is not None,
        compute_dtype=dtype, **more,
    )  # fmt: skip
    traffic = collectives(shape)
    return dict(traffic.calls), dict(traffic.payload_bytes)


def counted_each(capacity, dtype):
    """`counted` of every head of HEADS, by name."""
    return {name: counted(parts, capacity, dtype) for name, parts in HEADS.items()}


@pytest.mark.parametrize("capacity", [7, None])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_planned_bytes_are_those_counted(ranks, world, capacity):
    for found in ranks.run(counted_each, world, capacity=capacity, dtype=torch.float32):
        assert found.keys() == HEADS.keys()
        for name, parts in HEADS.items():
            expected = planned(parts, world, capacity, torch.float32)
            assert found[name] == expected, name
            assert expected[1]["reduce_scatter"] > 0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_and_in_each_dtype(ranks, dtype):
    for found in ranks.run(counted_each, 3, capacity=6, dtype=DTYPES[dtype]):
        assert found == {name: planned(parts, 3, 6, DTYPES[dtype]) for name, parts in HEADS.items()}


@pytest.mark.parametrize("capacity", [6, None])
def test_and_with_several_forwards_and_rows_read_ahead(ranks, capacity):
    parts, dtype = HEADS["uniform"], torch.float32
    expected = planned(parts, 2, capacity, dtype, accumulation=3, storage="host", prefetch=True)
    found = ranks.run(
        counted, 2, parts=parts, capacity=capacity, dtype=dtype, forwards=3, storage="host"
    )
    assert found == [expected, expected]


def test_links_carry_what_rings_need():
    """One-way volumes of rings: (W-1) gathered lines, 2 (W-1)/W of sums, (W-1)/W of scattered rows."""
    described = Description.of("arcface", "all", "all", None, "learned", None, "frozen", 10**7)
    shape = HeadShape(
        parts=described, classes=10**7, dim=512, world=8, samples=1024, capacity=128,
        compute_dtype=torch.bfloat16,
    )  # fmt: skip
    gathered, scattered = 129 * (16 + 1024) * 7, 4 * 1024 * 512 * 7 / 8
    assert collectives(shape).wire_bytes == gathered + 2 * 8 * 1024 * 7 / 8 + scattered
