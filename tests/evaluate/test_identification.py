"""Identification: by hand, against plain loops, ties, ranks."""

import numpy as np
import pytest
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.identification import Searches, identify, judge_searches
from mpsoftmax.evaluate.outcomes import summarise


def searches(mated, similarity, rank):
    return Searches(np.array(mated, bool), np.array(similarity, float), np.array(rank), 5)


def test_by_hand():
    #         mates at rank 1, 1, 3, 1; then five people who are not in the gallery
    found = searches(
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [0.9, 0.6, 0.8, 0.3, 0.7, 0.5, 0.4, 0.2, 0.1],
        [1, 1, 3, 1, 0, 0, 0, 0, 0],
    )
    values = judge_searches(found, ranks=(1, 2, 3), fpirs=(0.1, 0.2, 0.4, 0.6, 1.0)).values()
    assert values == {
        "rank_1": 0.75,
        "rank_2": 0.75,
        "rank_3": 1.0,
        "tpir_at_fpir_0.1": 0.25,  # above 0.7: 0.9 (0.8 is not at rank 1)
        "tpir_at_fpir_0.2": 0.5,  # above 0.5: 0.6 too
        "tpir_at_fpir_0.4": 0.5,
        "tpir_at_fpir_0.6": 0.75,
        "tpir_at_fpir_1": 0.75,  # rank 3 is never found at rank 1
    }
    wider = judge_searches(found, fpirs=(0.1,), open_rank=3).values()
    assert wider["tpir_at_fpir_0.1"] == 0.5


def test_a_tie_with_a_stranger_is_accepted_with_him_or_not_at_all():
    found = searches([1, 1, 0, 0], [0.5, 0.9, 0.5, 0.1], [1, 1, 0, 0])
    values = judge_searches(found, fpirs=(0.25, 0.5)).values()
    assert values["tpir_at_fpir_0.25"] == 0.5
    assert values["tpir_at_fpir_0.5"] == 1.0


def people(num_people=12, dim=6, seed=0, spread=0.8):
    rng = np.random.default_rng(seed)
    gallery_people = np.repeat(np.arange(num_people), 1 + np.arange(num_people) % 3)
    gallery_people = np.append(gallery_people, [-1, -1, -1])
    probe_people = rng.integers(0, num_people + 6, 70)
    centres = rng.normal(size=(num_people + 7, dim))
    gallery = centres[gallery_people] + spread * rng.normal(size=(len(gallery_people), dim))
    probe = centres[probe_people] + spread * rng.normal(size=(70, dim))
    shuffled = rng.permutation(len(gallery))
    return (
        torch.from_numpy(gallery[shuffled]).float(),
        gallery_people[shuffled],
        torch.from_numpy(probe).float(),
        probe_people,
    )


def literal(gallery, gallery_people, probe, probe_people, fusion, rates, open_rank):
    """NIST's definitions, one search at a time."""
    unit = lambda v: v / np.sqrt((v * v).sum())  # noqa: E731
    persons: list[tuple[int, list]] = []
    for row, person in zip(gallery.double().numpy(), gallery_people, strict=True):
        mine = [rows for name, rows in persons if name == person and person >= 0]
        if mine:
            mine[0].append(unit(row))
        else:
            persons.append((int(person), [unit(row)]))
    hits, mates, strangers = {1: 0, 5: 0}, [], []
    for row, person in zip(probe.double().numpy(), probe_people, strict=True):
        row = unit(row)
        scores = []
        for name, rows in persons:
            each = [row @ one for one in rows]
            scores.append(
                (max(each) if fusion == "max" else row @ unit(np.mean(rows, 0)), name == person)
            )
        own = [score for score, mine in scores if mine]
        if not own:
            strangers.append(max(score for score, _ in scores))
            continue
        rank = 1 + sum(score >= own[0] for score, mine in scores if not mine)
        for k in hits:
            hits[k] += rank <= k
        mates.append((own[0], rank))
    values = {f"rank_{k}": num / len(mates) for k, num in hits.items()}
    for rate in rates:
        best = 0.0
        for threshold in [own for own, _ in mates]:
            if np.mean(np.array(strangers) >= threshold) <= rate:
                found = [own >= threshold and rank <= open_rank for own, rank in mates]
                best = max(best, float(np.mean(found)))
        values[f"tpir_at_fpir_{rate:g}"] = best
    return values


@pytest.mark.parametrize("fusion", ["max", "mean"])
@pytest.mark.parametrize("open_rank", [1, 3])
def test_against_plain_loops(fusion, open_rank):
    rates = (0.02, 0.1, 0.3)
    arguments = people()
    expected = literal(*arguments, fusion, rates, open_rank)
    found = identify(
        *arguments, fusion=fusion, ranks=(1, 5), fpirs=rates, open_rank=open_rank
    ).values()
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0.2 < found["rank_1"] < found["rank_5"] < 1
    assert 0.0 < found["tpir_at_fpir_0.1"] < 0.9


def test_all_alike_finds_nobody():
    gallery, gallery_people, probe, probe_people = people()
    found = identify(
        torch.ones_like(gallery), gallery_people, torch.ones_like(probe), probe_people, fpirs=(0.5,)
    ).values()
    assert found["rank_1"] == 0.0
    assert found["tpir_at_fpir_0.5"] == 0.0


def test_per_item_values_are_the_figures():
    outcomes = identify(*people())
    for name, value in outcomes.values().items():
        assert np.nanmean(outcomes.per_item[name]) == pytest.approx(value, abs=1e-12)


def test_intervals_and_what_is_not_supported():
    outcomes = identify(*people(), fpirs=(0.5, 0.01))
    result = summarise(outcomes, num_bootstrap=200)
    again = summarise(outcomes, num_bootstrap=200)
    assert result == again
    for one in result.figures.values():
        assert one.interval is not None
        assert one.interval[0] <= one.value <= one.interval[1]
    assert result.figures["rank_1"].supported
    assert not result.figures["tpir_at_fpir_0.01"].supported
    num_others = result.counts["other_searches"]
    assert result.figures["tpir_at_fpir_0.5"].supported == (num_others >= 20)
    assert "too few to carry it" in result.render()


def on_ranks():
    import mpsoftmax.evaluate.blocks as blocks

    blocks.CELLS = 100  # four searches at a time
    return identify(*people(), comm=Comm()).values()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_same_on_any_number_of_ranks(ranks, world):
    expected = identify(*people()).values()
    assert ranks.run(on_ranks, world) == [expected] * world


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": "sum"}, "fusion must be one of max, mean"),
        ({"fpirs": (0.0,)}, r"fpirs must be in \(0, 1\]"),
        ({"ranks": (0,)}, "ranks must be 1 or more"),
        ({"probe_people": np.full(70, 99)}, "none of them is in the gallery"),
        ({"probe_people": np.full(70, -1)}, "-1 is nobody"),
        ({"probe": torch.zeros(70, 6)}, "zero or not finite"),
        ({"probe": torch.zeros(70, 5)}, "gallery must be"),
    ],
)
def test_errors(change, message):
    names = ("gallery", "gallery_people", "probe", "probe_people")
    arguments = {**dict(zip(names, people(), strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        identify(**arguments)
