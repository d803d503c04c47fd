"""Bad input: one clear error on all ranks, and a head that still works afterwards."""

import pytest
import torch

import mpsoftmax as mp


def attempt(culprit, kind):
    """What this rank is told when rank `culprit` misbehaves, then a good step."""
    head = mp.ModelParallelSoftmax(8, 20, batch_capacity=4, seed=1)
    features, labels = torch.randn(3, 8), torch.tensor([1, 2, 3])
    if head.comm.rank == culprit:
        features, labels = {
            "large": (features, torch.tensor([1, 20, 3])),
            "negative": (features, torch.tensor([1, 2, -2])),
            "columns": (torch.randn(3, 7), labels),
            "integers": (torch.ones(3, 8, dtype=torch.int64), labels),
            "flat": (torch.randn(8), labels),
            "floats": (features, labels.float()),
            "fewer": (features, labels[:2]),
            "capacity": (torch.randn(5, 8), torch.zeros(5, dtype=torch.int64)),
        }[kind]
    try:
        head(features.requires_grad_() if features.is_floating_point() else features, labels)
        message = None
    except ValueError as error:
        message = str(error)
    before = head.class_rows(torch.arange(20))
    head.step()
    unmoved = torch.equal(before, head.class_rows(torch.arange(20)))
    features = torch.randn(3, 8, requires_grad=True)
    loss = head(features, torch.tensor([1, -1, 3]))
    loss.backward()
    head.step()
    moved = not torch.equal(before, head.class_rows(torch.arange(20)))
    return message, unmoved, moved, loss.item()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("large", ("labels: 20 on rank 1 at position 1", "0 <= label < 20", "-1 to ignore")),
        ("negative", ("labels: -2 on rank 1 at position 2",)),
        ("columns", ("features: rank 1", "7", "[batch, 8]")),
        ("integers", ("features: rank 1", "floating point")),
        ("flat", ("features: rank 1",)),
        ("floats", ("labels: rank 1", "integer")),
        ("fewer", ("labels: rank 1", "2 values")),
        ("capacity", ("rank 1 brought 5 samples", "batch_capacity=4")),
    ],
)
@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_raises_and_recovers(ranks, world, kind, parts):
    for message, unmoved, moved, loss in ranks.run(attempt, world, culprit=1, kind=kind):
        assert message is not None
        assert all(part in message for part in parts), message
        assert unmoved
        assert moved
        assert loss > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "arcfase"}, "objective: 'arcfase'.*normface, cosface"),
        ({"candidates": "some"}, "candidates: 'some'"),
        ({"kernel": "fast"}, "kernel: 'fast'.*auto, blocked, reference"),
        ({"untouched": "eager"}, "untouched: 'eager'; allowed: frozen, lazy"),
        ({"compute_dtype": torch.float16}, "compute_dtype: torch.float16; allowed"),
        ({"row_dtype": torch.int8}, "row_dtype: torch.int8"),
        ({"num_classes": 0}, "num_classes: 0; allowed"),
        ({"embedding_dim": 2.5}, "embedding_dim: 2.5"),
        ({"batch_capacity": 0}, "batch_capacity: 0"),
        ({"e_budget_bytes": -1}, "e_budget_bytes: -1"),
        ({"init_std": 0.0}, "init_std: 0.0"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_constructor_names_field_value_and_choice(arguments, message):
    with pytest.raises(ValueError, match=message):
        mp.ModelParallelSoftmax(**{"embedding_dim": 8, "num_classes": 20, **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mp.ArcFace(0.0), r"ArcFace\.scale: 0\.0"),
        (lambda: mp.ArcFace(64.0, 2.0), r"ArcFace\.margin: 2\.0; allowed: 0 <= margin < pi/2"),
        (lambda: mp.CosFace(64.0, -0.1), r"CosFace\.margin: -0\.1"),
        (lambda: mp.CombinedMargin(64.0, 2.0, 0.5, 0.0), r"CombinedMargin\.m1: 2\.0"),
        (lambda: mp.SphereFace(1.5), r"SphereFace\.margin: 1\.5"),
        (lambda: mp.SphereFace(4, -1.0), r"SphereFace\.lam: -1\.0"),
        (lambda: mp.Uniform(1.5), r"Uniform\.rate: 1\.5"),
        (lambda: mp.RowSGD(momentum=1.0), r"RowSGD\.momentum: 1\.0"),
        (lambda: mp.RowAdamW(betas=(0.9, -0.1)), r"RowAdamW\.betas\[1\]: -0\.1"),
    ],
)
def test_parts_refuse_what_has_no_meaning(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def disagree():
    """Ranks that were given different heads."""
    rank = torch.distributed.get_rank()
    try:
        mp.ModelParallelSoftmax(8, 20 + rank, objective=mp.CosFace(margin=0.1))
    except ValueError as error:
        return str(error)
    return None


def test_ranks_with_different_arguments_are_told_so(ranks):
    for message in ranks.run(disagree, 3):
        assert message is not None
        assert "ranks disagree" in message


def nothing_valid():
    """A step in which no rank has a valid sample."""
    head = mp.ModelParallelSoftmax(8, 20, optimizer=mp.RowSGD(momentum=0.0, weight_decay=0.0))
    before = head.class_rows(torch.arange(20))
    size = head.comm.rank
    features = torch.randn(size, 8, requires_grad=True)
    loss = head(features, torch.full((size,), -1))
    loss.backward()
    head.step()
    unmoved = torch.equal(before, head.class_rows(torch.arange(20)))
    return loss.item(), bool((features.grad == 0).all()), unmoved


def test_a_step_without_a_valid_sample(ranks):
    assert ranks.run(nothing_valid, 3) == [(0.0, True, True)] * 3
