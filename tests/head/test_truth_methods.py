"""The truth test of the parts beside the objective: negatives, rules, samplers, class weights, merging."""

from dataclasses import replace

import pytest
import torch
from head_cases import CLASSES, DIM, SIZES, Case, head_of
from head_runs import check_all, train_all

import mpsoftmax as mp

WORLDS = [1, *(pytest.param(world, marks=pytest.mark.slow) for world in (2, 3)), 4]
PAIRS = ((2, 25), (7, 40), (30, 45), (20, 9))  # across the data sets; class 20 is one alone
RULES = [
    ("all_distinct",),
    ("own",),
    ("threshold", 0.15),
    ("target_relative", 0.2),
    ("target_relative", 0.05, 0.6),
    ("top_one", 0.3),
    ("top_k", 1),
    ("top_k", 3),
    ("known", PAIRS),
    ("hardest", 4, ("all_distinct",)),
    ("hardest", 5, ("threshold", 0.2)),
    ("hardest", 3, ("target_relative", 0.1)),
    ("hardest", 4, ("top_one", 0.2)),
    ("hardest", 60, ("top_one", 0.2)),  # more than there are
    ("hardest", 2, ("top_k", 2)),
    ("hardest", 4, ("known", PAIRS)),
]
BASKETS = [Case("cosface", rule=rule, kernel="blocked") for rule in RULES]
BASKETS += [
    Case("npcface", rule=("top_one", 0.2), kernel="reference", micros=2),
    Case("curricularface", rule=("target_relative", 0.1), warmup=1, steps=3, candidates=("uniform", 0.5)),
    Case("mvsoftmax arc", rule=("hardest", 6, ("top_one", 0.2)), margins=(None, 0.1, 0.5, None)),
    Case("curricularface", rule=("top_k", 2), margins=(0.2, 0.3, None, 0.4)),
    Case("arcface easy", rule=("threshold", 0.2), margins=(0.2, None, 0.4, 0.0), warmup=1),
    Case("adaface", rule=("own",), margins=(0.2, 0.1, 0.4, None), untouched="lazy"),
    Case("dsoftmax margin", rule=("top_one", 0.1), margins=(0.0, 0.1, None, 0.3)),
    Case("sphereface", rule=("target_relative", 0.2), kernel="reference"),
    Case("sphereface annealed", rule=("hardest", 5, ("threshold", 0.3)), candidates=("uniform", 0.5)),
    Case("magface", rule=("known", PAIRS), candidates=("dsoftmax_k", 0.5, "included")),
    Case("dsoftmax", rule=("target_relative", 0.1), candidates=("dsoftmax_b", 0.5), warmup=1, steps=3),
    Case("dsoftmax", rule=("hardest", 3, ("top_one", 0.2)), candidates=("dsoftmax_k", 0.6, "drawn")),
    Case("arcface", rule=("top_one", 0.2), noise=0.15, weights=("sub_centres", 2)),
]  # fmt: skip
NEGATIVES = [
    Case(name, noise=0.3, candidates=candidates, micros=2)
    for name, candidates in [
        ("cosface", ("all",)),
        ("arcface", ("uniform", 0.4)),
        ("sphereface", ("all",)),
        ("dsoftmax", ("dsoftmax_k", 0.4, "drawn")),
        ("dsoftmax", ("dsoftmax_b", 0.4)),
        ("adaface", ("all",)),
        ("magface", ("uniform", 0.4)),
    ]
]
SAMPLERS = [
    Case(name, candidates=candidates, untouched=untouched, optimiser=optimiser, micros=2, steps=3)
    for name, candidates, untouched, optimiser in [
        ("dsoftmax", ("dsoftmax_k", 0.3, "drawn"), "frozen", "sgd"),
        ("dsoftmax", ("dsoftmax_k", 0.3, "excluded"), "lazy", "sgd"),
        ("dsoftmax margin", ("dsoftmax_k", 0.3, "included"), "frozen", "adamw"),
        ("dsoftmax", ("dsoftmax_k", 0.01, "excluded"), "frozen", "sgd"),  # one class a shard
        ("arcface", ("dsoftmax_k", 0.3, "drawn"), "lazy", "sgd"),
        ("npcface", ("dsoftmax_k", 0.5, "excluded"), "frozen", "sgd"),
        ("sphereface", ("dsoftmax_k", 0.5, "included"), "frozen", "sgd"),
        ("dsoftmax", ("dsoftmax_b", 0.5), "frozen", "sgd"),
        ("dsoftmax margin", ("dsoftmax_b", 0.01), "frozen", "adamw"),  # one sample
        ("dsoftmax", ("dsoftmax_b", 1.0), "frozen", "sgd"),
    ]
]
WEIGHTS = [
    Case("arcface", weights=("sub_centres", 3), untouched="lazy", candidates=("uniform", 0.4), micros=2),
    Case("npcface", weights=("sub_centres", 2), kernel="reference"),
    Case("sphereface", weights=("sub_centres", 2), more={"e_budget_bytes": 0}),
    Case(
        "dsoftmax", weights=("sub_centres", 2), candidates=("dsoftmax_k", 0.4, "included"), optimiser="adamw"
    ),
    Case("dsoftmax", weights=("sub_centres", 2), candidates=("dsoftmax_b", 0.4)),
    Case("cosface", weights=("sub_centres", 1)),
    Case("cosface", weights=("class_centres", "ema", 0.3, "normalised"), steps=4),
    Case("arcface", weights=("class_centres", "center_loss", 0.5, "raw"), steps=4, micros=2),
    Case("sphereface", weights=("class_centres", "ema", 1.0, "raw"), steps=3),
    Case("normface", weights=("class_centres", "exact", 0.5, "normalised"), steps=3),
    Case("dsoftmax", weights=("class_centres", "exact", 0.5, "raw"), steps=3),
    Case("npcface", weights=("class_centres", "center_loss", 0.2, "normalised"), steps=4, micros=2,
         candidates=("uniform", 0.5)),
    Case("dsoftmax", weights=("class_centres", "ema", 0.5, "normalised"), steps=4,
         candidates=("dsoftmax_k", 0.5, "included"), rule=("top_one", 0.2), warmup=1),
    Case("dsoftmax", weights=("class_centres", "ema", 0.5, "raw"), steps=4, candidates=("dsoftmax_b", 0.5)),
]  # fmt: skip
MERGED = [
    Case("cosface", merged=PAIRS, steps=3),
    Case("arcface", merged=PAIRS, steps=3, candidates=("uniform", 0.5), micros=2),
    Case("npcface", merged=PAIRS, steps=3, rule=("top_one", 0.2)),
    Case("cosface", merged=PAIRS, steps=3, rule=("hardest", 5, ("top_k", 1)), margins=(0.1, None, 0.3, 0.2)),
    Case("dsoftmax", merged=PAIRS, steps=3, rule=("own",), candidates=("dsoftmax_k", 0.6, "included")),
    Case("arcface", merged=PAIRS, steps=3, weights=("class_centres", "exact", 0.5, "normalised")),
]  # fmt: skip
GROUPS = {
    "baskets": BASKETS[: len(RULES)],
    "baskets and more": BASKETS[len(RULES) :],
    "negatives": NEGATIVES,
    "samplers": SAMPLERS,
    "weights": WEIGHTS,
    "merged": MERGED,
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("group", GROUPS)
def test_float64(ranks, world, group):
    check_all(ranks, world, GROUPS[group])


def test_more_ranks_than_classes(ranks):
    """Empty shards: nothing to draw, nothing to mine, nothing to own."""
    cases = [
        Case("dsoftmax", candidates=("dsoftmax_k", 0.3, "drawn"), classes=3),
        Case("dsoftmax", candidates=("dsoftmax_k", 0.3, "excluded"), classes=2),
        Case("dsoftmax", candidates=("dsoftmax_b", 0.5), classes=2),
        Case("cosface", noise=0.1, classes=3),
        Case("npcface", weights=("sub_centres", 2), classes=3),
        Case("cosface", weights=("class_centres", "ema", 0.5, "normalised"), classes=3),
    ]
    check_all(ranks, 4, cases)


def test_float32_of_the_other_parts(ranks):
    """Close to the truth where no threshold is near: 1e-4 of each quantity."""
    from head_runs import compare, expected

    cases = [
        replace(case, dtype=torch.float32) for case in (*NEGATIVES[:3], *WEIGHTS[:2], SAMPLERS[0])
    ]
    by_rank = ranks.run(train_all, 3, cases=cases)
    for k, case in enumerate(cases):
        results = [answer[k] for answer in by_rank]
        wanted = expected(case, results, 3, torch.float64)
        assert wanted.gap > 1e-5
        assert max(compare(results, wanted).values()) < 1e-4, case


def test_a_target_that_was_not_drawn_moves_as_a_class(ranks):
    """All K rows of a class take part in a step or none does, also where only a target brought it in."""
    case = Case(
        "dsoftmax", weights=("sub_centres", 2), candidates=("dsoftmax_k", 0.1, "drawn"), steps=3
    )
    check_all(ranks, 2, [case, replace(case, optimiser="adamw")])


def merged_chain():
    """Three classes of one identity, merged in one call."""
    head = head_of(Case("cosface"))
    before = head.class_rows(torch.tensor([3, 30, 50]))
    head.merge_classes([(3, 30), (3, 50)])
    return before, head.class_rows(torch.tensor([3, 30, 50]))


def test_merging_three_classes_counts_each_once(ranks):
    for before, after in ranks.run(merged_chain, 2):
        direction = torch.nn.functional.normalize(before, dim=1).sum(0)
        for row in torch.nn.functional.normalize(after, dim=1):
            torch.testing.assert_close(row, direction / direction.norm(), rtol=1e-10, atol=1e-12)


def merged_centres():
    """Class centres merged when both, one and none have samples: rows and who may be a negative."""
    head = mp.ModelParallelSoftmax(DIM, 6, objective="cosface", weights="class_centres")
    features = torch.eye(6, DIM)[:3] * 5
    head(features.requires_grad_(), torch.tensor([0, 1, 2])).backward()
    head.step()
    head.merge_classes([(0, 1), (4, 2), (3, 5)])
    with torch.no_grad():
        head(features, torch.tensor([0, 1, 2]))
    return head.class_rows(torch.tensor([0, 4])), head.candidate_ids()


def test_merging_class_centres(ranks):
    """Of a pair the classes with samples make the row; a pair without any is nobody's negative yet."""
    results = ranks.run(merged_centres, 2)
    unit = torch.nn.functional.normalize(results[0][0], dim=1)
    expected = torch.zeros(2, DIM)
    expected[0, :2], expected[1, 2] = 0.5**0.5, 1.0
    torch.testing.assert_close(unit, expected)
    assert torch.cat([ids for _, ids in results]).tolist() == [0, 4]


def drawn_by(case, steps):
    """Candidate ids, chosen samples and labels of all ranks, step by step."""
    head = head_of(case)
    log = []
    for step in range(steps):
        stream = torch.Generator().manual_seed(step)
        labels = torch.randint(0, CLASSES, (head.comm.world, 4), generator=stream)
        labels[0, 0] = -1
        features = torch.randn(head.comm.world, 4, DIM, generator=stream, dtype=torch.float64)
        head(features[head.comm.rank].requires_grad_(), labels[head.comm.rank]).backward()
        log.append((head.candidate_ids(), head.last_chosen, labels.flatten()))
        head.step()
    return head.local_range, log


@pytest.mark.parametrize("world", [1, 3])
def test_dsoftmax_k_draws(ranks, world):
    """max(1, int(rate * local)) classes of every shard, and the batch's labels as the option says."""
    rate, sets = 0.3, {}
    for option in ("drawn", "excluded", "included"):
        case = Case("dsoftmax", candidates=("dsoftmax_k", rate, option))
        for (start, stop), log in ranks.run(drawn_by, world, case=case, steps=4):
            for step, (ids, chosen, labels) in enumerate(log):
                assert chosen is None
                assert ids.tolist() == sorted(set(ids.tolist()))
                assert all(start <= i < stop for i in ids.tolist())
                here = {i for i in labels.tolist() if start <= i < stop}
                sets[option, start, step] = (
                    set(ids.tolist()),
                    here,
                    max(1, int(rate * (stop - start))),
                )
    for (option, start, step), (ids, here, num) in sets.items():
        drawn = sets["drawn", start, step][0]
        assert len(drawn) == num
        if option != "drawn":
            assert ids == (drawn - here if option == "excluded" else drawn | here)
    first = [sets["drawn", 0, step][0] for step in range(4)]
    assert len({frozenset(ids) for ids in first}) > 1  # drawn anew in each step


@pytest.mark.parametrize("rate", [0.01, 0.4, 1.0])
def test_dsoftmax_b_draws(ranks, rate):
    """max(1, int(rate * valid)) samples, the same on all ranks, drawn anew in each step."""
    case = Case("dsoftmax", candidates=("dsoftmax_b", rate))
    results = [log for _, log in ranks.run(drawn_by, 3, case=case, steps=6)]
    seen = set()
    for step in range(6):
        chosen = [log[step][1].tolist() for log in results]
        assert chosen[0] == chosen[1] == chosen[2]
        assert len(set(chosen[0])) == max(1, int(rate * 11))
        assert all(0 <= i < 11 for i in chosen[0])
        seen.add(tuple(chosen[0]))
    assert len(seen) > 1 or rate == 1.0


def merged_and_split():
    """Rows of a merged pair, before, merged, and after undoing it; who is a negative of whom."""
    head = head_of(Case("cosface", rule=("all_distinct",)))
    ids = torch.tensor([2, 25])
    before = head.class_rows(ids)
    head.merge_classes([(2, 25)])
    merged, pairs, candidates = head.class_rows(ids), head.merged, head.candidate_ids()
    features = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    head(features, torch.tensor([25, 2, 30])).backward()
    candidates = head.candidate_ids()
    head.step()
    moved = head.class_rows(ids)
    state = {k: v.clone() for k, v in head.state_dict().items() if "merged" in k}
    head.split_classes([25])
    return before, merged, pairs, candidates, moved, head.class_rows(ids), head.merged, state


@pytest.mark.parametrize("world", [1, 3])
def test_merge_and_split(ranks, world):
    """The shared row is the mean of the directions, of mean length; a split gives a copy."""
    results = ranks.run(merged_and_split, world)
    for before, merged, pairs, _, moved, after, none, state in results:
        direction = torch.nn.functional.normalize(before, dim=1).sum(0)
        shared = direction / direction.norm() * before.norm(dim=1).mean()
        for row in merged:
            torch.testing.assert_close(row, shared, rtol=1e-12, atol=0)
        assert pairs.tolist() == [[2, 25]]
        assert state
        assert torch.equal(moved[0], moved[1])
        assert not torch.equal(moved, merged)
        assert none.numel() == 0
        assert torch.equal(after[0], moved[0])
        assert torch.equal(after[1], after[0])  # a copy
    candidates = torch.cat([result[3] for result in results]).tolist()
    assert candidates == [i for i in range(CLASSES) if i != 25]


def test_baskets_of_the_runs_fill_the_table():
    assert sum(SIZES) == CLASSES
    assert mp.Baskets(SIZES).sizes == SIZES
