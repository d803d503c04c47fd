"""Compositions of the four axes, drawn at random: each equals the truth or is refused for a listed reason."""

from dataclasses import replace

import pytest
from head_cases import OBJECTIVES, Case, head_of
from head_runs import check_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PAIRS = ((2, 25), (7, 40), (30, 45), (20, 9))
SIMPLE_RULES = st.one_of(
    st.just(("all_distinct",)),
    st.tuples(st.just("threshold"), st.sampled_from([-0.1, 0.15, 0.4])),
    st.tuples(st.just("target_relative"), st.sampled_from([0.0, 0.2])),
    st.tuples(st.just("top_one"), st.sampled_from([-0.2, 0.1, 0.3])),
    st.tuples(st.just("top_k"), st.sampled_from([1, 3])),
    st.just(("known", PAIRS)),
)
RULES = st.one_of(
    st.just(("own",)),
    SIMPLE_RULES,
    st.tuples(st.just("hardest"), st.sampled_from([1, 5]), SIMPLE_RULES),
)
CANDIDATES = st.one_of(
    st.just(("all",)),
    st.tuples(st.just("uniform"), st.sampled_from([0.0, 0.4])),
    st.tuples(st.just("uniform_blocks"), st.sampled_from([0.0, 0.4]), st.sampled_from([1, 3])),
    st.tuples(
        st.just("dsoftmax_k"),
        st.sampled_from([0.05, 0.5]),
        st.sampled_from(["drawn", "excluded", "included"]),
    ),
    st.tuples(st.just("dsoftmax_b"), st.sampled_from([0.05, 0.6])),
)
WEIGHTS = st.one_of(
    st.just(("learned",)),
    st.just(("sub_centres", 2)),
    st.tuples(
        st.just("class_centres"),
        st.sampled_from(["ema", "center_loss", "exact"]),
        st.sampled_from([0.3, 1.0]),
        st.sampled_from(["normalised", "raw"]),
    ),
)
# A centre of one sample has t = 1 up to rounding: there cos(arccos t + m), unless held, has half the digits.
WELL_CONDITIONED_AT_ONE = {name for name in OBJECTIVES if name != "arcface straight through"}
MARGINS = [(), (0.3, None, 0.2, 0.1)]


@st.composite
def cases(draw):
    """A composition; what an axis leaves without meaning is at its default."""
    rule = draw(st.none() | RULES)
    weights = draw(WEIGHTS)
    learned = weights[0] != "class_centres"
    return Case(
        objective=draw(st.sampled_from(sorted(OBJECTIVES if learned else WELL_CONDITIONED_AT_ONE))),
        noise=draw(st.sampled_from([None, None, 0.25])),
        candidates=draw(CANDIDATES),
        weights=weights,
        rule=rule,
        warmup=draw(st.sampled_from([0, 1])) if rule and rule != ("all_distinct",) else 0,
        margins=draw(st.sampled_from(MARGINS)) if rule else (),
        merged=draw(st.sampled_from([(), PAIRS])) if learned else (),
        optimiser=draw(st.sampled_from(["sgd", "adamw"])) if learned else "sgd",
        untouched=draw(st.sampled_from(["frozen", "lazy"])) if learned else "frozen",
        kernel=draw(st.sampled_from(["reference", "blocked"])),
        micros=draw(st.sampled_from([1, 2])),
        more=draw(st.sampled_from([{}, {"e_budget_bytes": 900, "batch_capacity": 7}])),
    )


def refusals(case):
    """Why a composition has no meaning: what the error may say; empty: it has one."""
    objective = OBJECTIVES[case.objective][0]
    margins = any(margin is not None for margin in case.margins)
    rule = case.rule or ()
    rules = {*rule[:1], *(rule[2][:1] if rule[:1] == ("hardest",) else ())}
    classes_are_sampled = case.candidates[0] in ("uniform", "uniform_blocks", "dsoftmax_k")
    re_weights = objective in ("mvsoftmax", "curricularface", "npcface", "circle")
    reasons = [
        (
            case.candidates[0] == "dsoftmax_b" and objective != "dsoftmax",
            r"candidates: DSoftmaxB.*cannot be sampled apart",
        ),
        (
            case.noise is not None and re_weights,
            r"negatives: NoiseFilter.*gives hard negatives more weight, a filter gives them none",
        ),
        ("top_k" in rules and classes_are_sampled, r"baskets\.rule: TopK.*all classes only"),
        (
            margins
            and objective in ("normface", "combined", "npcface", "magface", "circle", "adacos"),
            r"baskets\.margins: .*has a margin, which",
        ),
        (margins and objective == "sphereface", r"SphereFace\.margin: .*a whole number"),
    ]
    return [reason for applies, reason in reasons if applies]


def refused(case):
    """Whether a case must be refused; if so, checks that it is."""
    reasons = refusals(case)
    if reasons:
        with pytest.raises(ValueError, match="|".join(reasons)):
            head_of(case)
    return bool(reasons)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


WORLDS = st.sampled_from([1, 2, 3, 4])


@settings(max_examples=60, suppress_health_check=QUIET)
@given(case=cases(), world=WORLDS)
def test_compositions(ranks, case, world):
    if not refused(case):
        check_all(ranks, world, [case])


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=500, suppress_health_check=QUIET)
@given(case=cases(), world=WORLDS)
def test_many_compositions(ranks, case, world):
    if not refused(case):
        check_all(ranks, world, [case])


@settings(max_examples=100, suppress_health_check=QUIET)
@given(case=cases())
def test_refusals_are_exactly_those_listed(case):
    """Construction alone, without ranks: cheap, hence more of them."""
    if not refused(case):
        head_of(case)


WITHOUT_MEANING = [
    Case("arcface", candidates=("dsoftmax_b", 0.5)),
    Case("mvsoftmax am", noise=0.2),
    Case("curricularface", noise=0.2),
    Case("npcface", noise=0.2),
    Case("cosface", rule=("top_k", 1), candidates=("uniform", 0.4)),
    Case("cosface", rule=("hardest", 3, ("top_k", 1)), candidates=("dsoftmax_k", 0.5, "drawn")),
    Case("normface", rule=("own",), margins=MARGINS[1]),
    Case("combined", rule=("own",), margins=MARGINS[1]),
    Case("npcface", rule=("own",), margins=MARGINS[1]),
    Case("magface", rule=("own",), margins=MARGINS[1]),
    Case("sphereface", rule=("own",), margins=MARGINS[1]),
]


@pytest.mark.parametrize("case", WITHOUT_MEANING, ids=range(len(WITHOUT_MEANING)))
def test_one_of_each_refusal(case):
    """No reason above is idle, and without the part that has no meaning the head is built."""
    assert refused(case)
    allowed = replace(case, noise=None, candidates=("all",), margins=())
    assert not refused(allowed)
    head_of(allowed)
