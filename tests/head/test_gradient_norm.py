"""Norm of the class gradient before the step, and scaling it: against plain autograd on one process."""

import pytest
import torch
from torch.nn.functional import normalize

import mpsoftmax as mp

CLASSES, DIM, SCALE, MARGIN = 23, 8, 16.0, 0.2
CANDIDATES = {
    "all": "all",
    "uniform": mp.Uniform(rate=0.4),
    "dsoftmax_k": mp.DSoftmaxK(rate=0.3),
}


def batch(rank: int, micro: int):
    """Unequal batches; one sample is ignored."""
    generator = torch.Generator().manual_seed(10 * rank + micro)
    num = 2 + rank
    features = torch.randn(num, DIM, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, CLASSES, (num,), generator=generator)
    labels[0] = -1 if rank == 1 else labels[0]
    return features, labels


def measured(candidates, micros=2, **arguments):
    """A head's norm before, after scaling by a half, what then moves, and what took part."""
    defaults = {
        "objective": mp.CosFace(scale=SCALE, margin=MARGIN),
        "optimizer": mp.RowSGD(lr=1.0, momentum=0.0, weight_decay=0.0),
        "compute_dtype": torch.float64,
        "row_dtype": torch.float64,
        "seed": 3,
    }
    head = mp.ModelParallelSoftmax(DIM, CLASSES, candidates=candidates, **{**defaults, **arguments})
    comm, everyone = head.comm, torch.arange(CLASSES)
    before = head.class_rows(everyone).double()
    drawn = []
    for micro in range(micros):
        features, labels = batch(comm.rank, micro)
        features = features.to(arguments.get("compute_dtype", torch.float64)).requires_grad_()
        (head(features, labels) * (micro + 1.0)).backward()
        drawn.append(sorted(id for ids in comm.share(head.candidate_ids().tolist()) for id in ids))
    norm = comm.all_reduce_sum(head.gradient_square()).sqrt()
    again = comm.all_reduce_sum(head.gradient_square()).sqrt()
    finite = bool(head.gradient_is_finite())
    head.scale_gradient(torch.tensor(0.5))
    half = comm.all_reduce_sum(head.gradient_square()).sqrt()
    head.step()
    moved = head.class_rows(everyone).double() - before
    return before, drawn, float(norm), float(again), float(half), float(moved.norm()), finite


def by_autograd(rows, drawn, world) -> float:
    """The slow twin: the whole table, its gradient as a tensor."""
    rows = rows.clone().requires_grad_()
    for micro, ids in enumerate(drawn):
        parts = [batch(rank, micro) for rank in range(world)]
        features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        features, labels = features[labels >= 0], labels[labels >= 0]
        cosine = normalize(features, dim=1) @ normalize(rows, dim=1).T
        target = cosine.gather(1, labels[:, None])[:, 0] - MARGIN
        others = torch.zeros_like(cosine, dtype=torch.bool)
        others[:, ids] = True
        others[torch.arange(len(labels)), labels] = False
        negatives = (SCALE * cosine).masked_fill(~others, -torch.inf).logsumexp(1)
        loss = torch.nn.functional.softplus(negatives - SCALE * target).mean()
        (loss * (micro + 1.0)).backward()
    assert rows.grad is not None
    return float(rows.grad.norm())


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("candidates", list(CANDIDATES))
def test_norm_equals_plain_autograd(ranks, world, candidates):
    results = ranks.run(measured, world, candidates=CANDIDATES[candidates])
    before, drawn, norm, again, half, moved, finite = results[0]
    assert norm == pytest.approx(by_autograd(before, drawn, world), rel=1e-9)
    assert again == norm  # asking changes nothing
    assert half == pytest.approx(norm / 2, rel=1e-12)
    assert moved == pytest.approx(half, rel=1e-9)  # lr 1: the rows move by what was measured
    assert finite
    assert all(result[2] == norm for result in results)


@pytest.mark.parametrize(
    "arguments",
    [
        {"objective": mp.NPCFace()},
        {"weights": mp.SubCentres(num=2)},
        {"candidates": mp.DSoftmaxB(rate=0.5), "objective": mp.DSoftmax()},
        {"candidates": mp.Uniform(rate=0.4), "storage": "mapped", "batch_capacity": 8},
        {"compute_dtype": torch.float32, "row_dtype": torch.float32, "e_budget_bytes": 0},
    ],
    ids=["npcface", "sub-centres", "dsoftmax_b", "mapped", "float32-recomputed"],
)
def test_norm_is_that_of_what_moves(ranks, arguments):
    given = {"candidates": "all", **arguments}
    for _, _, norm, again, half, moved, _ in ranks.run(measured, 3, **given):
        exact = 1e-9 if arguments.get("compute_dtype") is None else 1e-5
        assert norm > 0
        assert again == norm
        assert half == pytest.approx(norm / 2, rel=exact)
        assert moved == pytest.approx(half, rel=exact)


def broken():
    """Rank 1's features are not finite: the gathered ones are not, on any rank."""
    head = mp.ModelParallelSoftmax(DIM, CLASSES)
    features, labels = batch(head.comm.rank, 0)
    features = features.float()
    if head.comm.rank == 1:
        features[1] = float("inf")
    head(features.requires_grad_(), labels).backward()
    before = bool(head.gradient_is_finite())
    head.zero_grad()
    return before, bool(head.gradient_is_finite()), float(head.gradient_square())


def test_what_is_not_finite_is_said(ranks):
    for found in ranks.run(broken, 2):
        assert found == (False, True, 0.0)


def test_class_centres_have_no_gradient(ranks):
    given = {"candidates": "all", "weights": mp.ClassCentres(), "optimizer": None}
    for _, _, norm, _, half, moved, _ in ranks.run(measured, 2, **given):
        assert norm == half == 0
        assert moved > 0
