"""How often the head talks, and how many bytes it hands over: counted and asserted."""

import pytest
import torch

import mpsoftmax as mp

DIM, CLASSES, CAPACITY = 12, 29, 6
OBJECTIVES = (
    mp.NormFace(16.0),
    mp.CosFace(16.0, 0.2),
    mp.ArcFace(16.0, 0.3),
    mp.CombinedMargin(16.0, 1.0, 0.2, 0.1),
    mp.SphereFace(4, 5.0),
)


def batch(rank, world):
    """Sizes that differ; one ignored label a rank."""
    size = (CAPACITY, 3, 5, 2)[rank]
    stream = torch.Generator().manual_seed(rank)
    labels = torch.randint(0, CLASSES, (size,), generator=stream)
    labels[0] = -1
    return torch.randn(size, DIM, generator=stream), labels


def counted(objective, candidates, capacity, dtype):
    """(calls, bytes) of one training step and of one evaluation, after construction."""
    head = mp.ModelParallelSoftmax(
        DIM, CLASSES, objective=objective, candidates=candidates, batch_capacity=capacity,
        compute_dtype=dtype, row_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
    )  # fmt: skip
    features, labels = batch(head.comm.rank, head.comm.world)
    head.comm.reset_counters()
    loss = head(features.requires_grad_(), labels)
    loss.backward()
    head.step()
    training = dict(head.comm.calls), dict(head.comm.payload_bytes)
    head.comm.reset_counters()
    with torch.no_grad():
        head(features, labels)
    return training, dict(head.comm.calls)


def expected_bytes(world, dtype, running_maximum):
    """docs/architecture.md: a line of 16 bytes beside each feature, one header line a rank."""
    size = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 2}[dtype]
    wide = 8 if dtype == torch.float64 else 4
    line = 16 + -(-DIM * size // 8) * 8
    num_valid = sum((CAPACITY, 3, 5, 2)[:world]) - world
    gathered, reduced = (CAPACITY + 1) * line, 2 * wide * num_valid
    scattered = world * CAPACITY * DIM * wide
    if running_maximum:
        return {"all_gather": gathered + 3 * wide * num_valid, "reduce_scatter": scattered}
    return {"all_gather": gathered, "all_reduce": reduced, "reduce_scatter": scattered}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_three_collectives_a_step(ranks, world, objective):
    running_maximum = isinstance(objective, mp.SphereFace)
    for candidates in ("all", mp.Uniform(0.4)):
        results = ranks.run(
            counted, world, objective=objective, candidates=candidates, capacity=CAPACITY,
            dtype=torch.float32,
        )  # fmt: skip
        for (calls, payload), evaluation in results:
            assert sum(calls.values()) == 3
            assert payload == expected_bytes(world, torch.float32, running_maximum)
            assert sum(evaluation.values()) == 2
            assert "reduce_scatter" not in evaluation


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes_follow_the_compute_dtype(ranks, dtype):
    results = ranks.run(
        counted, 3, objective=mp.ArcFace(), candidates="all", capacity=CAPACITY, dtype=dtype
    )
    for (_, payload), _ in results:
        assert payload == expected_bytes(3, dtype, running_maximum=False)


@pytest.mark.parametrize("world", [1, 3])
def test_a_fourth_exchanges_sizes_without_a_capacity(ranks, world):
    results = ranks.run(
        counted, world, objective=mp.CosFace(), candidates="all", capacity=None, dtype=torch.float32
    )
    for (calls, _), evaluation in results:
        assert calls == {"all_gather": 2, "all_reduce": 1, "reduce_scatter": 1}
        assert sum(evaluation.values()) == 3


def state_after_evaluation():
    """Evaluates between two training steps; returns what training would have without it."""
    out = []
    for evaluations in (0, 2):
        head = mp.ModelParallelSoftmax(DIM, CLASSES, candidates=mp.Uniform(0.4), untouched="lazy")
        features, labels = batch(head.comm.rank, head.comm.world)
        ids = []
        for _ in range(3):
            for _ in range(evaluations):
                with torch.no_grad():
                    assert not head(features * 2, labels).requires_grad
            head(features.clone().requires_grad_(), labels).backward()
            ids.append(head.candidate_ids())
            head.step()
        out.append((ids, head.class_rows(torch.arange(CLASSES)), head.last_stats))
    return out


def test_evaluation_changes_nothing(ranks):
    for without, with_evaluation in ranks.run(state_after_evaluation, 3):
        assert all(torch.equal(a, b) for a, b in zip(without[0], with_evaluation[0], strict=True))
        assert torch.equal(without[1], with_evaluation[1])
        for name, value in without[2].items():
            assert torch.equal(value, with_evaluation[2][name]), name
