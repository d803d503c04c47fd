"""The truth test: the distributed head against a single process that materialises everything."""

import pytest
import torch
import truth
from torch import tensor

import mpsoftmax as mp

CLASSES, DIM = 53, 12  # uneven over 2, 3 and 4 ranks
OBJECTIVES = {
    "normface": (mp.NormFace(16.0), {"scale": 16.0}),
    "cosface": (mp.CosFace(64.0, 0.35), {"scale": 64.0, "margin": 0.35}),
    "arcface": (mp.ArcFace(64.0, 0.5), {"scale": 64.0, "margin": 0.5}),
    "combined": (
        mp.CombinedMargin(32.0, 1.0, 0.3, 0.2),
        {"scale": 32.0, "m1": 1.0, "m2": 0.3, "m3": 0.2},
    ),
    "sphereface": (mp.SphereFace(4, 5.0), {"margin": 4, "lam": 5.0}),
}
SGD = {"momentum": 0.9, "weight_decay": 5e-3}
ADAMW = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 2e-2}
RULES = {"sgd": (mp.RowSGD, 0.3, SGD), "adamw": (mp.RowAdamW, 0.02, ADAMW)}


def batch(step, micro, world, classes=CLASSES, scale=3.0):
    """Features and labels of every rank: unequal sizes, one empty rank if possible, ignored labels."""
    stream = torch.Generator().manual_seed(1000 * step + micro)
    sizes = [(7, 0, 4, 5), (3, 6, 1, 0)][(step + micro) % 2][:world]
    features = [torch.randn(b, DIM, generator=stream, dtype=torch.float64) * scale for b in sizes]
    labels = [torch.randint(0, classes, (b,), generator=stream) for b in sizes]
    labels[0][0] = -1
    return features, labels


def train(objective, candidates, rule, untouched, steps, micros, dtype, classes=CLASSES, **kw):
    """One rank's run of the head: losses, feature gradients, candidate ids, final rows."""
    kind, lr, p = RULES[rule]
    world = torch.distributed.get_world_size()
    head = mp.ModelParallelSoftmax(
        DIM,
        classes,
        objective=objective,
        candidates=candidates,
        optimizer=kind(lr=lr, **p),
        untouched=untouched,
        compute_dtype=dtype,
        row_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        init_std=0.5,
        **kw,
    )
    start = head.class_rows(torch.arange(classes)).double()
    log = []
    for step in range(steps):
        for micro in range(micros):
            features, labels = batch(step, micro, world, classes)
            mine = features[head.comm.rank].to(dtype if dtype != torch.bfloat16 else torch.float32)
            mine.requires_grad_()
            loss = head(mine, labels[head.comm.rank])
            (loss * (micro + 1.0)).backward()
            log.append((loss.item(), mine.grad.double(), head.candidate_ids()))
        head.step()
    return start, log, head.class_rows(torch.arange(classes)).double()


def errors(results, world, name, rule, untouched, steps, micros, dtype, classes=CLASSES):
    """Largest relative errors of (losses, feature gradients, rows) against the truth in `dtype`."""
    plain = torch.float32 if dtype == torch.bfloat16 else dtype
    _, lr, p = RULES[rule]
    truth_rows = results[0][0].to(plain, copy=True)
    dense = truth.Dense(rule, truth_rows, untouched, lr, **p)
    start = truth_rows.clone()
    out = {"loss": [], "features": [], "rows": None}
    for step in range(steps):
        gradient = torch.zeros_like(truth_rows)
        touched = torch.zeros(classes, dtype=torch.bool)
        for micro in range(micros):
            ids = torch.cat([log[step * micros + micro][2] for _, log, _ in results])
            candidates = torch.zeros(classes, dtype=torch.bool)
            candidates[ids] = True
            touched |= candidates
            features, labels = batch(step, micro, world, classes)
            leaf = torch.cat(features).to(plain).requires_grad_()
            rows = truth_rows.clone().requires_grad_()
            value = truth.loss(
                name, leaf, rows, torch.cat(labels), candidates, OBJECTIVES[name][1],
                bf16=dtype == torch.bfloat16,
            )  # fmt: skip
            by_feature, by_row = torch.autograd.grad(value * (micro + 1.0), (leaf, rows))
            gradient += by_row
            out["loss"].append(value.item())
            out["features"].append(by_feature.double() * world)
        dense.step(truth_rows, gradient, touched)
    out["rows"] = (truth_rows - start).double()
    return out


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def compare(results, expected):
    """Worst relative error of each quantity over all ranks and steps."""
    worst = {"loss": 0.0, "features": 0.0, "rows": 0.0}
    for start, log, rows in results:
        worst["rows"] = max(worst["rows"], relative(rows - start, expected["rows"]))
        for (loss, _, _), value in zip(log, expected["loss"], strict=True):
            worst["loss"] = max(worst["loss"], abs(loss - value) / abs(value))
    for k, by_feature in enumerate(expected["features"]):
        mine = torch.cat([log[k][1] for _, log, _ in results])
        worst["features"] = max(worst["features"], relative(mine, by_feature))
    return worst


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("candidates", ["all", mp.Uniform(0.3)], ids=["all", "uniform"])
@pytest.mark.parametrize("untouched", ["frozen", "lazy"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_float64(ranks, world, candidates, untouched, name):
    run = dict(rule="sgd", untouched=untouched, steps=4, micros=2, dtype=torch.float64)
    results = ranks.run(
        train, world, objective=OBJECTIVES[name][0], candidates=candidates,
        batch_capacity=7, e_budget_bytes=900, **run,
    )  # fmt: skip
    worst = compare(results, errors(results, world, name, **run))
    assert max(worst.values()) < 1e-10, worst


@pytest.mark.parametrize("name", ["arcface", "sphereface"])
@pytest.mark.parametrize("candidates", ["all", mp.Uniform(0.7)], ids=["all", "uniform"])
def test_float64_over_several_blocks_of_classes(ranks, candidates, name):
    """More classes than a block holds: several tiles, E kept in part, a running maximum rescaled."""
    run = dict(rule="sgd", untouched="lazy", steps=2, micros=2, dtype=torch.float64, classes=1511)
    results = ranks.run(
        train_in_small_blocks, 2, objective=OBJECTIVES[name][0], candidates=candidates,
        e_budget_bytes=40_000, **run,
    )  # fmt: skip
    worst = compare(results, errors(results, 2, name, **run))
    assert max(worst.values()) < 1e-10, worst


def train_in_small_blocks(**run):
    """`train` with the smallest blocks of rows, 256: three of them a shard."""
    from mpsoftmax.kernels import blocked

    usual, blocked.CPU_BLOCK_BYTES = blocked.CPU_BLOCK_BYTES, 1
    try:
        assert blocked.block_size(DIM, torch.float64, torch.device("cpu")) == 256
        return train(**run)
    finally:
        blocked.CPU_BLOCK_BYTES = usual


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("candidates", ["all", mp.Uniform(0.3)], ids=["all", "uniform"])
@pytest.mark.parametrize("untouched", ["frozen", "lazy"])
def test_float64_adamw_without_capacity(ranks, world, candidates, untouched):
    run = dict(rule="adamw", untouched=untouched, steps=5, micros=1, dtype=torch.float64)
    results = ranks.run(
        train, world, objective="arcface", candidates=candidates, kernel="reference",
        **run,
    )  # fmt: skip
    worst = compare(results, errors(results, world, "arcface", **run))
    assert max(worst.values()) < 1e-10, worst


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_shards_without_classes(ranks, classes):
    """Fewer classes than ranks: empty shards, and with one class no negatives at all."""
    run = dict(rule="sgd", untouched="lazy", steps=3, micros=1, dtype=torch.float64)
    results = ranks.run(
        train, 4, objective=OBJECTIVES["cosface"][0], candidates=mp.Uniform(0.5),
        classes=classes, **run,
    )  # fmt: skip
    expected = errors(results, 4, "cosface", classes=classes, **run)
    if classes > 1:
        worst = compare(results, expected)
        assert max(worst.values()) < 1e-10, worst
        return
    for start, log, rows in results:
        assert all(loss == 0.0 for loss, _, _ in log)
        assert all((gradient == 0).all() for _, gradient, _ in log)
        torch.testing.assert_close(rows - start, expected["rows"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("candidates", ["all", mp.Uniform(0.3)], ids=["all", "uniform"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_worse_than_plain_autograd(ranks, dtype, candidates, name):
    """Our error is at most twice that of plain autograd in the same dtype, plus 1e-6."""
    run = dict(rule="sgd", untouched="frozen", steps=1, micros=1)
    results = ranks.run(
        train, 2, objective=OBJECTIVES[name][0], candidates=candidates, dtype=dtype, **run
    )
    exact = errors(results, 2, name, dtype=torch.float64, **run)
    plain = errors(results, 2, name, dtype=dtype, **run)
    ours = compare(results, exact)
    theirs = {
        "loss": abs(plain["loss"][0] - exact["loss"][0]) / exact["loss"][0],
        "features": relative(plain["features"][0], exact["features"][0]),
        "rows": relative(plain["rows"], exact["rows"]),
    }
    for quantity, error in ours.items():
        assert error <= 2 * theirs[quantity] + 1e-6, (quantity, error, theirs[quantity])


def test_running_maximum_equals_static_shift(ranks):
    """A scale too large for any constant shift takes the running maximum; the maths is the same."""
    assert mp.ModelParallelSoftmax(4, 9, objective=mp.CosFace(200.0, 0.1))._shift is None
    name = "cosface"
    OBJECTIVES["cosface"] = (mp.CosFace(200.0, 0.1), {"scale": 200.0, "margin": 0.1})
    try:
        run = dict(rule="sgd", untouched="frozen", steps=2, micros=1, dtype=torch.float32)
        results = ranks.run(
            train, 3, objective=OBJECTIVES[name][0], candidates="all", e_budget_bytes=2000,
            **run,
        )  # fmt: skip
        worst = compare(results, errors(results, 3, name, **{**run, "dtype": torch.float64}))
        assert max(worst.values()) < 1e-4, worst
    finally:
        OBJECTIVES["cosface"] = (mp.CosFace(64.0, 0.35), {"scale": 64.0, "margin": 0.35})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradcheck_objective(name):
    """Phi's derivatives in t, l and the norm against finite differences, in float64."""
    stream = torch.Generator().manual_seed(0)
    t = (torch.rand(20, generator=stream, dtype=torch.float64) * 1.9 - 0.95).requires_grad_()
    negatives = (torch.randn(20, generator=stream, dtype=torch.float64) * 20).requires_grad_()
    norm = (torch.rand(20, generator=stream, dtype=torch.float64) * 20 + 1).requires_grad_()
    objective = OBJECTIVES[name][0]
    assert torch.autograd.gradcheck(objective.loss, (t, negatives, norm), atol=1e-6)


def gradcheck_head(objective, candidates, kernel):
    """Gradient of the loss by this rank's features, all ranks perturbing in step."""
    head = mp.ModelParallelSoftmax(
        6, 11, objective=objective, candidates=candidates, compute_dtype=torch.float64,
        row_dtype=torch.float64, init_std=0.5, kernel=kernel,
    )  # fmt: skip
    world = head.comm.world
    stream = torch.Generator().manual_seed(3)
    everyone = torch.randn(world, 3, 6, generator=stream, dtype=torch.float64)
    labels = torch.randint(0, 11, (world, 3), generator=stream)
    for mover in range(world):
        mine = everyone[head.comm.rank].clone().requires_grad_()
        loss = head(mine, labels[head.comm.rank])
        loss.backward()
        head.zero_grad()
        flat = everyone.clone()
        for place in range(18):
            values = []
            for sign in (1, -1):
                flat[mover].view(-1)[place] += sign * 1e-6
                with torch.no_grad():
                    values.append(head(flat[head.comm.rank], labels[head.comm.rank]).item())
                flat[mover].view(-1)[place] -= sign * 1e-6
            slope = world * (values[0] - values[1]) / 2e-6
            if mover == head.comm.rank:
                assert abs(slope - mine.grad.view(-1)[place].item()) < 1e-5 * max(1, abs(slope))
    return True


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kernel", ["reference", "blocked"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradcheck_head(ranks, world, kernel, name):
    objective = OBJECTIVES[name][0]
    results = ranks.run(
        gradcheck_head, world, objective=objective, candidates=mp.Uniform(0.6), kernel=kernel
    )
    assert results == [True] * world


def test_frozen_features_still_train_the_rows():
    """Head-only training: the loss is differentiable although the features are not."""
    head = mp.ModelParallelSoftmax(8, 10)
    before = head.class_rows(torch.arange(10))
    loss = head(torch.randn(4, 8), tensor([0, 1, 2, 3]))
    loss.backward()
    head.step()
    assert not torch.equal(before, head.class_rows(torch.arange(10)))
