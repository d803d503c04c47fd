"""Verification figures: worked by hand, against plain loops, against scikit-learn."""

import json

import numpy as np
import pytest

from mpsoftmax.evaluate.ranking import auc, equal_error_rate, rank_pairs, roc
from mpsoftmax.evaluate.verification import verify


def random_pairs(num_pairs=400, seed=0, decimals=None, block=20):
    """Overlapping genuine and impostor cosines, blocks of one kind in turn as in LFW."""
    rng = np.random.default_rng(seed)
    same = np.arange(num_pairs) // block % 2 == 0
    similarity = np.clip(rng.normal(np.where(same, 0.45, 0.15), 0.2), -1, 1)
    return (similarity if decimals is None else similarity.round(decimals)), same


def quick(similarity, same, **options):
    options = {"num_folds": 2, "num_bootstrap": 0, "fars": (0.5,), **options}
    return verify(np.array(similarity, float), np.array(same, bool), **options)


# --- by hand -------------------------------------------------------------------------------


def test_by_hand():
    # folds:     |------ first ------|  |----- second -----|
    similarity = [0.9, 0.6, 0.7, 0.1, 0.8, 0.3, 0.5, 0.2]
    same = [1, 1, 0, 0, 1, 1, 0, 0]
    result = quick(similarity, same, fars=(0.25, 0.2, 0.5, 1.0))
    # second fold alone: accepting 0.8 only errs on 0.3: 3 of 4; 0.3 and up errs on 0.5: 3 of 4.
    # Strictest: accept 0.8, reject 0.5, threshold 0.65 -> first fold: 0.7 and 0.6 wrong.
    # First fold alone: 0.9 only: 3 of 4 -> threshold 0.8 -> second fold: 0.8 right, 0.3 wrong.
    assert result.fold_accuracies == (0.5, 0.75)
    assert result.accuracy == 0.625
    assert result.accuracy_std == 0.125
    # 16 genuine-impostor comparisons lost: 0.6 < 0.7; 0.3 < 0.7 and < 0.5
    assert result.auc == 13 / 16
    # ROC: (0,1/4) (0,2/4) (1/4,2/4) (1/4,3/4) ...: false rejects meet false accepts at 1/4
    assert result.eer == 0.25
    assert [at.tar for at in result.tar_at_far] == [0.75, 0.5, 1.0, 1.0]
    # all pairs: accept 0.9 and 0.8, reject 0.7 and below (6 of 8), the strictest such choice
    assert result.threshold == pytest.approx(0.75)
    assert (result.num_genuine, result.num_impostors) == (4, 4)


def test_perfect_separation_is_perfect_in_every_figure():
    # each fold holds the extreme pair of a kind: the midpoint rule still judges it right
    result = quick([0.5, 0.9, 0.1, 0.2, 0.6, 0.8, 0.3, 0.0], [1, 1, 0, 0, 1, 1, 0, 0], fars=(1e-4,))
    assert (result.accuracy, result.auc, result.eer) == (1.0, 1.0, 0.0)
    assert result.tar_at_far[0].tar == 1.0
    assert result.threshold == pytest.approx(0.4)


def test_perfectly_wrong():
    result = quick([0.1, 0.9, 0.2, 0.8], [1, 0, 1, 0])
    assert (result.accuracy, result.auc, result.eer) == (0.5, 0.0, 1.0)


def test_equal_similarities_are_accepted_together_or_not_at_all():
    result = quick([0.5] * 8, [1, 0] * 4, fars=(0.5, 0.99, 1.0))
    assert (result.accuracy, result.auc, result.eer) == (0.5, 0.5, 0.5)
    assert [at.tar for at in result.tar_at_far] == [0.0, 0.0, 1.0]


def test_tie_between_kinds_counts_half():
    result = quick([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0], fars=(0.49, 0.5))
    assert result.auc == 0.875
    assert [at.tar for at in result.tar_at_far] == [0.5, 1.0]
    assert result.eer == pytest.approx(0.25)  # halfway along the line from (0, 1/2) to (1/2, 1)


def test_threshold_between_neighbouring_floats_separates_them():
    low = 0.7
    result = quick([np.nextafter(low, 1), low] * 2, [1, 0] * 2)
    assert result.accuracy == 1.0
    assert result.threshold > low


def test_float32_similarities_are_taken_as_they_are():
    similarity, same = random_pairs()
    single = verify(similarity.astype(np.float32), same, num_bootstrap=0)
    double = verify(similarity.astype(np.float32).astype(np.float64), same, num_bootstrap=0)
    assert single == double


# --- against plain loops -------------------------------------------------------------------


def slow_folds(similarity, same, num_folds):
    """Every threshold tried on the other folds, one by one."""
    accuracies = []
    for tested in np.array_split(np.arange(len(same)), num_folds):
        train = np.setdiff1d(np.arange(len(same)), tested)
        values = np.unique(similarity[train])[::-1]
        candidates = [np.inf, *((values[:-1] + values[1:]) / 2), -np.inf]
        scores = [((similarity[train] >= t) == same[train]).mean() for t in candidates]
        best = candidates[int(np.argmax(scores))]
        accuracies.append(((similarity[tested] >= best) == same[tested]).mean())
    return accuracies


@pytest.mark.parametrize("decimals", [None, 2, 1])
@pytest.mark.parametrize(("num_pairs", "num_folds"), [(400, 10), (203, 10), (50, 2), (12, 12)])
def test_folds_against_a_loop(num_pairs, num_folds, decimals):
    similarity, same = random_pairs(num_pairs, num_pairs, decimals, block=3)
    result = verify(similarity, same, num_folds=num_folds, num_bootstrap=0)
    assert result.fold_accuracies == pytest.approx(slow_folds(similarity, same, num_folds))


def test_folds_of_useless_similarities_against_a_loop():
    rng = np.random.default_rng(3)
    for _ in range(50):  # the best choice is often to accept nothing, or everything
        similarity, same = rng.integers(0, 4, 20) / 4, rng.random(20) < 0.5
        result = verify(similarity, same, num_folds=4, num_bootstrap=0)
        assert result.fold_accuracies == pytest.approx(slow_folds(similarity, same, 4))


def slow_insightface(similarity, same, num_folds, far):
    """arcface_torch's evaluation protocol written out, in loops over folds."""
    distance = 2 - 2 * similarity
    coarse, fine = np.arange(0, 4, 0.01), np.arange(0, 4, 0.001)
    accuracies, tars = [], []
    for tested in np.array_split(np.arange(len(same)), num_folds):
        train = np.setdiff1d(np.arange(len(same)), tested)
        scores = [((distance[train] < t) == same[train]).mean() for t in coarse]
        best = coarse[int(np.argmax(scores))]
        accuracies.append(((distance[tested] < best) == same[tested]).mean())
        impostors = distance[train][~same[train]]
        rates = np.array([(impostors < t).mean() for t in fine])
        threshold = np.interp(far, rates, fine) if rates.max() >= far else 0.0
        tars.append((distance[tested][same[tested]] < threshold).mean())
    return accuracies, np.mean(tars)


@pytest.mark.parametrize("far", [0.3, 0.1, 0.02, 1e-3])
def test_insightface_protocol_against_a_loop(far):
    similarity, same = random_pairs(403, 5)
    result = verify(similarity, same, protocol="insightface", fars=(far,), num_bootstrap=0)
    accuracies, tar = slow_insightface(similarity, same, 10, far)
    assert result.fold_accuracies == pytest.approx(accuracies)
    assert result.tar_at_far[0].tar == pytest.approx(tar)
    exact = verify(similarity, same, num_bootstrap=0)
    assert (result.auc, result.eer) == (exact.auc, exact.eer)


def test_insightface_rejects_a_pair_exactly_on_the_threshold():
    # distances 0.5 (genuine) and 1 (impostor): 0.51 is the first threshold that is right
    result = quick([0.75, 0.5] * 2, [1, 0] * 2, protocol="insightface")
    assert result.accuracy == 1.0
    assert result.threshold == pytest.approx(1 - 0.51 / 2)


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    for decimals in (None, 1):
        similarity, same = random_pairs(500, 7, decimals)
        result = verify(similarity, same, num_bootstrap=0, fars=(0.3, 0.1, 0.01))
        assert result.auc == pytest.approx(metrics.roc_auc_score(same, similarity))
        false_accept, true_accept, _ = metrics.roc_curve(same, similarity, drop_intermediate=False)
        for at in result.tar_at_far:
            assert at.tar == pytest.approx(true_accept[false_accept <= at.far].max())
        # the curve, as straight lines, passes through (eer, 1 - eer), perhaps vertically
        sides = [result.eer - 1e-9, result.eer + 1e-9]
        below, above = np.interp(sides, false_accept, true_accept)
        assert below - 1e-6 <= 1 - result.eer <= above + 1e-6


def test_weights_mean_repeated_pairs():
    similarity, same = random_pairs(60, 9, 1, block=5)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    ranking = rank_pairs(similarity, same, np.zeros(60, np.int64))
    weighted = roc(ranking, weights[ranking.order][None])
    again = rank_pairs(
        similarity.repeat(weights), same.repeat(weights), np.zeros(weights.sum(), np.int64)
    )
    plain = roc(again, np.ones((1, weights.sum()), np.int64))
    assert auc(weighted) == pytest.approx(auc(plain))
    assert equal_error_rate(weighted) == pytest.approx(equal_error_rate(plain))


# --- what matters and what does not --------------------------------------------------------


def test_order_of_the_pairs_matters_through_the_folds_only():
    similarity, same = random_pairs(200, 11)
    shifted = similarity + np.repeat([0.0, 0.3], 100)  # two halves with different thresholds
    mixed = np.arange(200).reshape(2, 100).T.ravel()
    first = verify(shifted, same, num_folds=2, num_bootstrap=0)
    second = verify(shifted[mixed], same[mixed], num_folds=2, num_bootstrap=0)
    assert first.accuracy < second.accuracy - 0.05
    assert (first.auc, first.eer, first.tar_at_far) == (second.auc, second.eer, second.tar_at_far)


def test_a_monotone_change_of_similarity_changes_no_rate():
    # (midpoints do move: the accuracy may differ by a pair or so)
    similarity, same = random_pairs(200, 13)
    first = verify(similarity, same, num_bootstrap=0)
    second = verify(np.exp(3 * similarity), same, num_bootstrap=0)
    assert (first.auc, first.eer, first.tar_at_far) == (second.auc, second.eer, second.tar_at_far)
    assert first.accuracy == pytest.approx(second.accuracy, abs=0.02)


def test_support_needs_ten_expected_false_accepts():
    similarity, same = random_pairs(2400, 15, block=120)
    result = verify(similarity, same, fars=(0.1, 0.01, 10 / 1200, 0.008, 1e-3), num_bootstrap=0)
    assert [at.supported for at in result.tar_at_far] == [True, True, True, False, False]
    assert {at.num_impostors for at in result.tar_at_far} == {1200}


# --- intervals -----------------------------------------------------------------------------


def test_intervals_are_repeatable_and_contain_the_estimate():
    similarity, same = random_pairs(400, 17)
    first = verify(similarity, same, num_bootstrap=200, seed=3)
    assert first == verify(similarity, same, num_bootstrap=200, seed=3)
    other = verify(similarity, same, num_bootstrap=200, seed=4)
    assert first.auc_interval != other.auc_interval
    assert first.auc_interval[0] < first.auc < first.auc_interval[1]
    low, high = first.tar_at_far[0].interval
    assert low <= first.tar_at_far[0].tar <= high
    assert first.accuracy_interval[0] <= first.accuracy <= first.accuracy_interval[1]


def test_intervals_cover_the_true_area():
    truth = 0.8556  # P(N(0.45, 0.2) > N(0.15, 0.2)) = Phi(0.3 / (0.2 sqrt 2))
    covered = 0
    for seed in range(100):
        similarity, same = random_pairs(300, 1000 + seed)
        interval = verify(similarity, same, num_bootstrap=200, fars=()).auc_interval
        covered += interval[0] <= truth <= interval[1]
    assert 88 <= covered <= 100  # 95 expected; below 88 once in 300 times


def test_more_pairs_narrower_intervals():
    widths = []
    for num_pairs in (200, 3200):
        low, high = verify(
            *random_pairs(num_pairs, 19, block=5), num_bootstrap=200
        ).accuracy_interval
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 6.5  # 4 by the square root of the number


@pytest.mark.parametrize("protocol", ["exact", "insightface"])
def test_no_bootstrap_no_intervals(protocol):
    result = verify(*random_pairs(), num_bootstrap=0, protocol=protocol)
    assert result.accuracy_interval is None
    assert result.auc_interval is None
    assert all(at.interval is None for at in result.tar_at_far)


# --- output --------------------------------------------------------------------------------


def test_output():
    result = verify(*random_pairs(), num_bootstrap=20, fars=(0.1, 1e-3), protocol="insightface")
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert values["accuracy"] == result.accuracy
    assert values["tar_at_far"][1]["supported"] is False
    assert values["auc_interval"] == list(result.auc_interval)
    text = result.render()
    assert f"{result.accuracy:.4f} +- {result.accuracy_std:.4f}" in text
    assert "200 genuine and 200 impostor pairs, protocol insightface" in text
    lines = {line[:22].strip(): line for line in text.splitlines()}
    assert "too few impostors (200)" in lines["TAR at FAR 0.001"]
    assert "too few" not in lines["TAR at FAR 0.1"]
    assert "95 %" in lines["AUC"]
    assert "95 %" not in verify(*random_pairs(), num_bootstrap=0).render()


# --- errors --------------------------------------------------------------------------------

GOOD = np.linspace(-1, 1, 20)
KINDS = np.arange(20) % 2 == 0


@pytest.mark.parametrize(
    ("similarity", "same", "options", "message"),
    [
        (GOOD, np.ones(20, bool), {}, "both kinds of pairs, got 20 genuine ones only"),
        (GOOD, np.zeros(20, bool), {}, "got 20 impostor ones only"),
        (GOOD, KINDS[:19], {}, r"same must be bool \[20\], got bool \[19\]"),
        (GOOD, KINDS.astype(int), {}, "same must be bool"),
        (GOOD[:, None], KINDS, {}, r"similarity must be float \[P\], got float64 \[20, 1\]"),
        (np.arange(20), KINDS, {}, "similarity must be float"),
        (np.where(KINDS, np.nan, GOOD), KINDS, {}, r"similarity\[0\] is nan"),
        (np.where(KINDS, GOOD, np.inf), KINDS, {}, r"similarity\[1\] is inf"),
        (GOOD, KINDS, {"num_folds": 21}, r"num_folds must be 2 .. 20"),
        (GOOD, KINDS, {"num_folds": 1}, "num_folds"),
        (GOOD, KINDS, {"fars": (0.1, 0)}, r"fars must be in \(0, 1\], got 0"),
        (GOOD, KINDS, {"num_bootstrap": -1}, "num_bootstrap"),
        (GOOD, KINDS, {"protocol": "lfw"}, "protocol must be one of exact, insightface"),
        (2 * GOOD, KINDS, {"protocol": "insightface"}, "must be cosines"),
        (GOOD, np.arange(20) < 2, {"protocol": "insightface"}, "genuine pairs in fold 1"),
    ],
)
def test_errors(similarity, same, options, message):
    with pytest.raises(ValueError, match=message):
        verify(similarity, same, **options)
