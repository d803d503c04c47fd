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
    mp.DSoftmax(),
    mp.AdaFace(16.0),
    mp.MagFace(16.0),
    mp.AdaCos(),
)


def batch(rank, world):
    """Sizes that differ; one ignored label a rank."""
    size = (CAPACITY, 3, 5, 2)[rank]
    stream = torch.Generator().manual_seed(rank)
    labels = torch.randint(0, CLASSES, (size,), generator=stream)
    labels[0] = -1
    return torch.randn(size, DIM, generator=stream), labels


def counted(objective, candidates, capacity, dtype, num_classes=CLASSES, **more):
    """(calls, bytes) of one training step and of one evaluation, after construction."""
    head = mp.ModelParallelSoftmax(
        DIM, num_classes, objective=objective, candidates=candidates, batch_capacity=capacity,
        compute_dtype=dtype, row_dtype=torch.float64 if dtype == torch.float64 else torch.float32, **more,
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


def samples(world):
    """Valid samples of all ranks."""
    return sum((CAPACITY, 3, 5, 2)[:world]) - world


def expected_bytes(world, dtype, running_maximum=False, columns=2, before=0, num_chosen=None):
    """What each collective is handed, by docs/architecture.md.

    A line of 16 bytes beside each feature and one header line a rank; `columns` numbers a sample in (2), one
    more with a running maximum; `before`: bytes reduced before the sweep. Where `num_chosen` samples meet
    their negatives, all columns but the target cosine are theirs.
    """
    size = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 2}[dtype]
    wide = 8 if dtype == torch.float64 else 4
    line = 16 + -(-DIM * size // 8) * 8
    gathered, scattered = (CAPACITY + 1) * line, world * CAPACITY * DIM * wide
    statistics = wide * columns * samples(world)
    if num_chosen is not None:
        statistics = wide * ((columns - 1) * num_chosen + samples(world))
    if running_maximum:
        gathered += statistics + wide * samples(world)
        statistics = 0
    calls = {
        "all_gather": gathered, "all_reduce": statistics + before, "reduce_scatter": scattered,
    }  # fmt: skip
    return {name: num_bytes for name, num_bytes in calls.items() if num_bytes}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_three_collectives_a_step(ranks, world, objective):
    running_maximum = isinstance(objective, mp.SphereFace)
    for candidates in ("all", mp.Uniform(0.4), mp.DSoftmaxK(0.3)):
        results = ranks.run(
            counted, world, objective=objective, candidates=candidates, capacity=CAPACITY,
            dtype=torch.float32,
        )  # fmt: skip
        for (calls, payload), evaluation in results:
            assert sum(calls.values()) == 3
            assert payload == expected_bytes(world, torch.float32, running_maximum)
            assert sum(evaluation.values()) == 2
            assert "reduce_scatter" not in evaluation


HARD = (
    mp.MVSoftmax(16.0),
    mp.MVSoftmax(16.0, variant="arc"),
    mp.CurricularFace(16.0),
    mp.NPCFace(16.0),
)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("objective", HARD, ids=lambda o: type(o).__name__)
def test_hard_negatives_ask_for_the_target_first(ranks, world, objective):
    """One more all-reduce of a number a sample; total, hard sum and hard count are three in (2)."""
    results = ranks.run(
        counted, world, objective=objective, candidates=mp.Uniform(0.4), capacity=CAPACITY,
        dtype=torch.float32,
    )  # fmt: skip
    for (calls, payload), evaluation in results:
        assert calls == {"all_gather": 1, "all_reduce": 2, "reduce_scatter": 1}
        before = 4 * samples(world)
        assert payload == expected_bytes(world, torch.float32, columns=3, before=before)
        assert evaluation == {"all_gather": 1, "all_reduce": 2}


@pytest.mark.parametrize("world", [1, 3])
def test_filter_sub_centres_and_centres_have_three(ranks, world):
    """A filter counts what it filters: two more numbers a sample. Other class weights cost nothing."""
    for more, columns in [
        ({"negatives": mp.NoiseFilter(0.2)}, 4),
        ({"objective": mp.CircleLoss(16.0)}, 4),  # it counts what it pushes
        ({"weights": mp.SubCentres(3)}, 2),
        ({"weights": mp.ClassCentres()}, 2),
    ]:
        more = {"objective": mp.CosFace(16.0, 0.2), **more}
        results = ranks.run(
            counted, world, candidates="all", capacity=CAPACITY,
            dtype=torch.float32, **more,
        )  # fmt: skip
        for (calls, payload), evaluation in results:
            assert sum(calls.values()) == 3
            assert payload == expected_bytes(world, torch.float32, columns=columns)
            assert sum(evaluation.values()) == 2


@pytest.mark.parametrize("world", [1, 4])
def test_dsoftmax_b_reduces_what_was_chosen(ranks, world):
    results = ranks.run(
        counted, world, objective=mp.DSoftmax(), candidates=mp.DSoftmaxB(0.5), capacity=CAPACITY,
        dtype=torch.float32,
    )  # fmt: skip
    chosen = max(1, samples(world) // 2)
    for (calls, payload), evaluation in results:
        assert sum(calls.values()) == 3
        assert payload == expected_bytes(world, torch.float32, num_chosen=chosen)
        assert sum(evaluation.values()) == 2


SIZES = (9, 1, 8, 11)
# Rule: calls beside the three, and bytes a sample handed over before the sweep: 8 for each class looked up in
# each data set, 4 for the target cosine. One class is reduced to its maximum; several are gathered.
RULES = {
    "all_distinct": (mp.AllDistinct(), {}, 0),
    "own": (mp.OwnBasket(), {}, 0),
    "threshold": (mp.Threshold(0.3), {}, 0),
    "known": (mp.Overlap([(0, 12)]), {}, 0),
    "target_relative": (mp.TargetRelative(0.2), {"all_reduce": 1}, 4),
    "top_one": (mp.TopOne(0.2), {"all_reduce": 1}, 8 * 4),
    "top_k 1": (mp.TopK(1), {"all_reduce": 1}, 8 * 4),
    "top_k 3": (mp.TopK(3), {"all_gather": 1}, 8 * 4 * 3),
    "hardest of all": (mp.Hardest(5, mp.AllDistinct()), {"all_gather": 1}, 8 * 5),
    "the hardest": (mp.Hardest(1, mp.Threshold(0.3)), {"all_reduce": 1}, 8),
    "hardest after R3": (mp.Hardest(5), {"all_reduce": 1, "all_gather": 1}, 8 * 4 + 8 * 5),
    "hardest after R2": (
        mp.Hardest(5, mp.TargetRelative(0.1)), {"all_reduce": 1, "all_gather": 1}, 4 + 8 * 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_mining_costs_what_its_rule_says(ranks, world, name):
    """And two more numbers a sample in (2), classes left out and let in, where a rule looks at any.

    A target cosine that is reduced before the sweep is not in (2).
    """
    rule, more, before = RULES[name]
    for warmup in (0,) if rule.all_distinct else (0, 1):
        results = ranks.run(
            counted, world, objective=mp.CosFace(16.0, 0.2), candidates="all", capacity=CAPACITY,
            dtype=torch.float32, baskets=mp.Baskets(SIZES, rule=rule, warmup=warmup),
        )  # fmt: skip
        three = {"all_gather": 1, "all_reduce": 1, "reduce_scatter": 1}
        for (calls, payload), evaluation in results:
            wanted = {k: v + (0 if warmup else more.get(k, 0)) for k, v in three.items()}
            assert calls == wanted
            num_bytes = 0 if warmup else before * samples(world)
            columns = 2 if rule.all_distinct else 4 - (rule.needs_target and not warmup)
            base = expected_bytes(world, torch.float32, columns=columns)
            assert sum(payload.values()) == sum(base.values()) + num_bytes
            after = {k: three[k] + more.get(k, 0) for k in ("all_gather", "all_reduce")}
            assert evaluation == after  # the warm-up was one step long


def test_bytes_do_not_depend_on_the_number_of_classes(ranks):
    """NPCFace with R3 at 29 and at 290 classes."""
    found = []
    for factor in (1, 10):
        baskets = mp.Baskets([factor * size for size in SIZES], rule=mp.TopOne())
        results = ranks.run(
            counted, 3, objective=mp.NPCFace(16.0), candidates="all", capacity=CAPACITY,
            dtype=torch.float32, baskets=baskets, num_classes=factor * CLASSES,
        )  # fmt: skip
        found.append([training for training, _ in results])
    assert found[0] == found[1]
    assert sum(found[0][0][0].values()) == 5


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
