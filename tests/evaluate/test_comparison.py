"""Comparison of two models: McNemar and permutations against SciPy and all swaps, pairing, coverage."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from mpsoftmax.evaluate.comparison import compare, mcnemar_p, permutation_p
from mpsoftmax.evaluate.retrieval import retrieve
from mpsoftmax.evaluate.verification import verification_outcomes, verify


@pytest.mark.parametrize(
    ("b", "c"), [(0, 0), (5, 0), (0, 1), (3, 9), (8, 8), (40, 75), (900, 1040)]
)
def test_mcnemar_is_the_binomial_test(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-9)


def test_permutations_approach_all_swaps():
    gaps = np.array([0.5, -0.2, 0.9, 0.0, 0.4, -0.1, 0.3, 0.6])
    swaps = [abs(np.dot(signs, gaps)) for signs in itertools.product((-1, 1), repeat=len(gaps))]
    exact = np.mean(np.array(swaps) >= abs(gaps.sum()) - 1e-12)
    assert permutation_p(gaps, 40_000, 0) == pytest.approx(exact, abs=0.005)
    assert permutation_p(np.zeros(5), 100, 0) == 1.0
    assert permutation_p(gaps, 0, 0) is None


def pairs(noise, seed=0, num=400):
    same = np.arange(num) // 20 % 2 == 0
    base = np.random.default_rng(0).normal(np.where(same, 0.4, 0.1), 0.1)
    return base + noise * np.random.default_rng(seed).normal(size=num), same


def test_verification_of_a_better_and_a_worse_model():
    good, same = pairs(0.02, 1)
    bad, _ = pairs(0.25, 2)
    outcomes = [verification_outcomes(one, same) for one in (good, bad)]
    found = compare(*outcomes, num_bootstrap=300, num_permutations=2000)
    accuracy = found.differences["accuracy"]
    results = [verify(one, same, num_bootstrap=0) for one in (good, bad)]
    assert accuracy.first == results[0].accuracy
    assert accuracy.second == results[1].accuracy
    assert found.differences["auc"].difference == results[0].auc - results[1].auc
    for at, other in zip(results[0].tar_at_far, results[1].tar_at_far, strict=True):
        one = found.differences[f"tar_at_far_{at.far:g}"]
        assert (one.first, one.second) == (at.tar, other.tar)
    assert accuracy.interval is not None
    assert 0 < accuracy.interval[0] < accuracy.difference < accuracy.interval[1]
    assert accuracy.mcnemar is not None
    only_first, only_second, p = accuracy.mcnemar
    assert (only_first - only_second) / 400 == pytest.approx(accuracy.difference)
    assert p == pytest.approx(binomtest(only_first, only_first + only_second, 0.5).pvalue, rel=1e-9)
    assert accuracy.p_permutation == pytest.approx(1 / 2001, abs=0.002)
    assert found.differences["auc"].p_permutation is None
    assert "McNemar" in found.render()


def test_a_model_is_no_better_than_itself():
    outcomes = verification_outcomes(*pairs(0.1, 1))
    for one in compare(
        outcomes, outcomes, num_bootstrap=50, num_permutations=50
    ).differences.values():
        assert (one.difference, one.interval) == (0.0, (0.0, 0.0))
        assert one.p_permutation in (None, 1.0)


def test_pairing_narrows_the_interval():
    """Two models that err on the same pairs: the difference is known far better than either."""
    first, same = pairs(0.02, 1)
    second, _ = pairs(0.02, 2)
    outcomes = [verification_outcomes(one, same) for one in (first, second)]
    low, high = compare(*outcomes, num_bootstrap=300).differences["auc"].interval
    alone = verify(first, same, num_bootstrap=300).auc_interval
    assert high - low < 0.6 * (alone[1] - alone[0])


def test_queries():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 5)
    centres = rng.normal(size=(20, 8))[labels]
    own = np.arange(100)
    models = [
        torch.from_numpy(centres + spread * rng.normal(size=(100, 8))) for spread in (0.5, 1.2)
    ]
    outcomes = [retrieve(one, labels, one, labels, own=own) for one in models]
    found = compare(*outcomes, num_bootstrap=200, num_permutations=500).differences
    assert found["recall_at_1"].mcnemar is not None
    assert found["mAP_at_R"].mcnemar is None
    assert found["mAP_at_R"].p_permutation == pytest.approx(1 / 501, abs=0.003)
    assert found["mAP_at_R"].interval[0] > 0


def test_errors():
    outcomes = verification_outcomes(*pairs(0.1))
    other = verification_outcomes(*pairs(0.1, num=200))
    with pytest.raises(ValueError, match="the same items expected"):
        compare(outcomes, other)
    with pytest.raises(ValueError, match="num_permutations must be 0 or more"):
        compare(outcomes, outcomes, num_permutations=-1)
