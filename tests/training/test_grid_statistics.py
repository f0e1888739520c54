"""Statistics of a grid against brute force, closed forms, scipy, sklearn and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from training.grid import statistics
from training.grid.statistics import Sample

CODES = ("E", "S", "C", "I")


def sample_of(value_SQ, count_DQ, *, seeds=None, constant=False):
    """Give a sample with one figure, the mean over queries."""
    whole_Q = np.ones((1, value_SQ.shape[1]), dtype=np.uint8)
    value_S = statistics.draw_means(value_SQ, whole_Q)[0]
    seeds = tuple(range(len(value_SQ))) if seeds is None else seeds
    drawn = {"m": statistics.draw_means(value_SQ, count_DQ)}
    return Sample(seeds, constant, {"m": value_S}, drawn, {"m": value_SQ.shape[1]})


def made_pairs(n_queries, n_items, seed):
    """Give labels, the predictions of two seeds and the query of each pair."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, 4, n_queries * n_items)
    predicted_SN = np.where(rng.random((2, len(label_N))) < 0.6, label_N, rng.integers(0, 4, (2, len(label_N))))
    return label_N, predicted_SN, np.repeat(np.arange(n_queries), n_items)


def test_figures_of_drawn_confusions_are_those_of_the_drawn_pairs():
    """Each draw's macro-F1, accuracy and kappa equal sklearn's on the rows that the draw repeats."""
    label_N, predicted_SN, query_N = made_pairs(20, 7, 0)
    count_DQ = statistics.draw_queries(20, 5, 1)
    count_SQKK = statistics.confusion_by_query(label_N, predicted_SN, query_N, n_classes=4)
    figures = statistics.confusion_figures(statistics.draw_confusions(count_SQKK, count_DQ), CODES)
    for d, s in itertools.product(range(5), range(2)):
        rows = np.repeat(np.arange(140), count_DQ[d][query_N])
        truth, guess = label_N[rows], predicted_SN[s][rows]
        each = f1_score(truth, guess, labels=range(4), average=None)
        assert figures["macro_f1"][d, s] == pytest.approx(each.mean())
        assert figures["f1_C"][d, s] == pytest.approx(each[2])
        assert figures["accuracy"][d, s] == pytest.approx((truth == guess).mean())
        assert figures["qwk"][d, s] == pytest.approx(cohen_kappa_score(truth, guess, weights="quadratic"))


def test_kappa_of_one_and_the_same_answer_is_undefined_and_f1_of_an_absent_class_is_nought():
    """All pairs are Exact and all are called so: F1 (1, 0, 0, 0)."""
    count_KK = np.zeros((4, 4))
    count_KK[0, 0] = 9
    figures = statistics.confusion_figures(count_KK, CODES)
    assert np.isnan(figures["qwk"])
    assert figures["macro_f1"] == 0.25


def test_the_drawn_area_is_that_of_the_drawn_pairs():
    """Scores with many ties; sklearn counts ties half as well; a draw without a positive has none."""
    rng = np.random.default_rng(2)
    query_N, score_N = np.repeat(np.arange(12), 6), rng.integers(0, 5, 72) / 4
    positive_N = rng.random(72) < 0.2 + 0.5 * score_N
    count_DQ = np.concatenate([statistics.draw_queries(12, 8, 3), np.zeros((1, 12), dtype=np.uint8)])
    found = statistics.draw_auc(positive_N, score_N, query_N, count_DQ)
    for d in range(8):
        rows = np.repeat(np.arange(72), count_DQ[d][query_N])
        assert found[d] == pytest.approx(roc_auc_score(positive_N[rows], score_N[rows]))
    assert np.isnan(found[8])


def test_means_leave_unknown_queries_out_of_every_draw():
    """The mean of the drawn known values, nested in seeds; nan where a draw holds none."""
    value_SQ = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0]])
    count_DQ = np.array([[1, 1, 1], [2, 0, 1], [1, 2, 0]], dtype=np.uint8)
    expected = [[2.0, 5.0], [5 / 3, 5.0], [1.0, np.nan]]
    np.testing.assert_allclose(statistics.draw_means(value_SQ, count_DQ), expected)


def test_draws_take_as_many_queries_as_there_are_and_the_same_ones_for_the_same_seed():
    """Each row sums to Q; the variance of a count is 1 - 1 / Q."""
    count_DQ = statistics.draw_queries(50, 2000, 4)
    assert (count_DQ.sum(axis=1) == 50).all()
    assert count_DQ.var() == pytest.approx(1 - 1 / 50, abs=0.02)
    np.testing.assert_array_equal(count_DQ, statistics.draw_queries(50, 2000, 4))
    assert (count_DQ != statistics.draw_queries(50, 2000, 5)).any()


def test_seed_weights_give_the_mean_over_seeds_its_unbiased_variance():
    """The drawn means of three values vary as s² / 3 with s² over n - 1; plain drawing would give two thirds of it."""
    value_S = np.array([0.1, 0.4, 0.9])
    weight_DS = statistics.seed_weights(3, 40_000, 0)
    np.testing.assert_allclose(weight_DS.sum(axis=1), 1)
    assert (weight_DS @ value_S).var() == pytest.approx(value_S.var(ddof=1) / 3, rel=0.03)
    assert statistics.seed_weights(1, 3, 0).tolist() == [[1.0], [1.0], [1.0]]


def test_the_estimate_is_the_nested_mean_and_its_error_the_closed_form():
    """Crossed effects: var of the mean = seeds' variance / S + queries' variance / Q, here without interaction."""
    rng = np.random.default_rng(6)
    seed_S, query_Q = rng.normal(0, 0.3, 8), rng.normal(0, 1.0, 100)
    own = sample_of(seed_S[:, None] + query_Q, statistics.draw_queries(100, 8000, 1))
    found = statistics.estimate(own, "m", 0)
    assert found.value == pytest.approx(seed_S.mean() + query_Q.mean())
    assert found.sd == pytest.approx(seed_S.std(ddof=1))
    assert found.error == pytest.approx(np.sqrt(seed_S.var(ddof=1) / 8 + query_Q.var() / 100), rel=0.05)
    assert found.low < found.value < found.high


def test_the_interval_of_a_difference_covers_the_truth_about_as_often_as_it_says():
    """300 grids of 10 seeds × 60 queries with a true difference of 0.1: at least 92 % covered, and p ≤ 0.05 agrees."""
    rng = np.random.default_rng(7)
    count_DQ = statistics.draw_queries(60, 600, 0)
    covered, agreed = 0, 0
    for _ in range(300):
        shared_Q = rng.normal(0, 0.5, 60)
        sides = [
            shared_Q + mean + rng.normal(0, 0.1, 60) + rng.normal(0, 0.02, (10, 1)) + rng.normal(0, 0.2, (10, 60))
            for mean in (0.1, 0.0)
        ]
        found = statistics.difference(*(sample_of(side, count_DQ) for side in sides), "m", 0)
        covered += found.low <= 0.1 <= found.high
        agreed += (found.p <= 0.05) == (not found.low <= 0 <= found.high)
    assert 0.92 <= covered / 300 <= 0.99
    assert agreed == 300


def test_three_seeds_cover_as_often_as_they_say_where_seeds_are_all_the_noise():
    """400 grids of 3 seeds that differ and queries that do not; percentiles of the same draws cover four in five."""
    rng = np.random.default_rng(11)
    count_DQ = statistics.draw_queries(40, 500, 0)
    covered, rejected = 0, 0
    for _ in range(400):
        own = sample_of(np.tile(rng.normal(0, 0.1, (3, 1)), (1, 40)), count_DQ)
        found = statistics.difference(own, sample_of(np.zeros((3, 40)), count_DQ), "m", 0)
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert 0.925 <= covered / 400 <= 0.98
    assert rejected == 400 - covered


def test_without_noise_of_queries_the_test_is_the_paired_t_test_of_the_seeds():
    """scipy's t test of five differences: p and interval, up to the drawn error; five seeds have four degrees."""
    value_S = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    count_DQ = statistics.draw_queries(30, 20_000, 0)
    sides = [sample_of(np.tile(side[:, None], (1, 30)), count_DQ) for side in (value_S, value_S * 0)]
    found, expected = statistics.difference(*sides, "m", 0), stats.ttest_1samp(value_S, 0)
    interval = expected.confidence_interval(0.95)
    assert found.df == pytest.approx(4, rel=0.1)
    assert found.p == pytest.approx(expected.pvalue, rel=0.1)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.002)
    reach = stats.t.ppf(0.975, found.df) + stats.t.ppf(0.8, found.df)
    assert found.detectable() == pytest.approx(reach * found.error)
    assert found.detectable() > 1.2 * statistics.POWER_Z * found.error
    strict = stats.t.ppf(1 - 0.025 / 5, found.df) + stats.t.ppf(0.8, found.df)
    assert found.detectable(0.05 / 5) == pytest.approx(strict * found.error)


def test_degrees_of_freedom_go_from_those_of_the_seeds_to_those_of_the_queries():
    """Equal parts of 2 and 49 degrees: 1 / (0.25 / 2 + 0.25 / 49); equal seeds leave 49, one untrained run too."""
    rng = np.random.default_rng(12)
    count_DQ = statistics.draw_queries(50, 20_000, 0)
    query_Q = rng.normal(0, 1, 50)
    of_seeds = np.array([-1.0, 0.0, 1.0])[:, None] * query_Q.std() / np.sqrt(50) * np.sqrt(3)
    equal = statistics.estimate(sample_of(of_seeds + query_Q, count_DQ), "m", 0)
    assert equal.df == pytest.approx(1 / (0.25 / 2 + 0.25 / 49), rel=0.1)
    same = np.tile(query_Q, (3, 1))
    assert statistics.estimate(sample_of(same, count_DQ), "m", 0).df == pytest.approx(49)
    untrained = statistics.estimate(sample_of(same[:1], count_DQ, seeds=(0,), constant=True), "m", 0)
    assert untrained.df == 49
    assert untrained.low < untrained.value < untrained.high


def test_pairing_cancels_what_both_sides_share():
    """Two systems that differ by a constant differ without any spread: nothing but rounding in the error."""
    value_SQ = np.random.default_rng(8).normal(0, 1, (3, 40))
    count_DQ = statistics.draw_queries(40, 999, 0)
    found = statistics.difference(sample_of(value_SQ + 0.2, count_DQ), sample_of(value_SQ, count_DQ), "m", 0)
    assert found.value == pytest.approx(0.2)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.p < 1e-6
    same = sample_of(value_SQ, count_DQ)
    assert statistics.difference(same, same, "m", 0).p == 1


def test_a_difference_uses_the_seeds_that_both_sides_finished():
    """Seed 1 is the only one in common; an untrained system stands beside any seed; no common seed gives None."""
    count_DQ = statistics.draw_queries(5, 100, 0)
    value_SQ = np.array([[0.0] * 5, [1.0] * 5])
    ours = sample_of(value_SQ, count_DQ, seeds=(0, 1))
    late = sample_of(value_SQ, count_DQ, seeds=(1, 2))
    untrained = sample_of(value_SQ[1:] / 2, count_DQ, seeds=(0,), constant=True)
    one = statistics.difference(ours, late, "m", 0)
    assert (one.value, one.seeds) == (1.0, 1)
    assert np.isnan([one.sd, one.df, one.low, one.high, one.p, one.detectable()]).all()
    both = statistics.difference(ours, untrained, "m", 0)
    assert (both.value, both.seeds) == (0.0, 2)
    assert statistics.difference(ours, sample_of(value_SQ[:1], count_DQ, seeds=(7,)), "m", 0) is None
    assert statistics.difference(untrained, untrained, "m", 0).value == 0


def test_the_share_of_the_gap_is_one_for_the_ceiling_and_nought_for_the_base():
    """A system half-way has 0.5; without a lead there is no share."""
    count_DQ = statistics.draw_queries(30, 500, 0)
    base_SQ = np.random.default_rng(9).normal(0, 0.1, (3, 30))
    base, middle = sample_of(base_SQ, count_DQ), sample_of(base_SQ + 0.1, count_DQ)
    top = sample_of(base_SQ[:1] * 0 + base_SQ.mean() + 0.2, count_DQ, seeds=(0,), constant=True)
    shares = [statistics.gap_closed(system, base, top, "m", seed=0) for system in (base, middle, top)]
    assert [share.value for share in shares] == pytest.approx([0, 0.5, 1])
    assert shares[1].low < 0.5 < shares[1].high
    assert statistics.gap_closed(middle, top, base, "m", seed=0) is None


def test_the_ends_of_a_share_are_those_that_the_t_test_just_does_not_refuse():
    """Fieller: at either end, gain - share · lead is so many standard errors from 0; without a sure lead, no ends."""
    rng = np.random.default_rng(13)
    count_DQ = statistics.draw_queries(40, 4000, 0)
    base_SQ = rng.normal(0, 0.1, (4, 40))
    own_SQ, top_SQ = (base_SQ + lead + rng.normal(0, 0.2, (4, 40)) for lead in (0.1, 0.3))
    base, own, top = (sample_of(side, count_DQ) for side in (base_SQ, own_SQ, top_SQ))
    found = statistics.gap_closed(own, base, top, "m", seed=0)
    for end in (found.low, found.high):
        rest_SQ = own_SQ - base_SQ - end * (top_SQ - base_SQ)
        rest = statistics.estimate(sample_of(rest_SQ, count_DQ), "m", 0)
        assert abs(rest.value) / rest.error == pytest.approx(stats.t.ppf(0.975, found.df))
    unsure = sample_of(base_SQ + 0.001 + rng.normal(0, 1, (4, 40)), count_DQ)
    shares = [statistics.gap_closed(own, *sides, "m", seed=0) for sides in ((base, unsure), (unsure, base))]
    (share,) = [share for share in shares if share is not None]
    assert np.isnan([share.low, share.high]).all()


@given(st.integers(0, 40), st.integers(0, 40))
def test_mid_p_equals_the_enumeration_of_all_outcomes(b, c):
    """Outcomes farther from the middle count in full, those equally far count half; no discordant pair gives 1."""
    n = b + c
    outcome = np.arange(n + 1)
    probability, distance = stats.binom.pmf(outcome, n, 0.5), np.abs(2 * outcome - n)
    expected = probability[distance > abs(b - c)].sum() + probability[distance == abs(b - c)].sum() / 2
    assert statistics.mcnemar_mid_p(b, c) == pytest.approx(expected if n else 1.0)


def test_the_detectable_accuracy_matches_the_table_of_the_design():
    """10,000 independent pairs at 10 % discordance: 2.8016 √(0.1 / 10,000) = 0.89 points."""
    ours_N, theirs_N = np.ones(10_000, dtype=bool), np.ones(10_000, dtype=bool)
    ours_N[:500] = theirs_N[500:1000] = False
    found = statistics.paired_accuracy(ours_N, theirs_N, np.random.default_rng(0).permutation(10_000))
    assert (found.only_ours, found.only_theirs, found.discordance) == (500, 500, 0.1)
    assert found.design_effect == pytest.approx(1, abs=0.001)
    assert found.detectable == pytest.approx(0.00886, abs=1e-5)
    assert found.mid_p == statistics.mcnemar_mid_p(500, 500)


def test_the_design_effect_of_identical_pairs_is_their_number():
    """Queries of 20 pairs that always change together: 20 × Q / (Q - 1)."""
    ours_Q = np.random.default_rng(1).random(300) < 0.5
    theirs_Q = np.random.default_rng(2).random(300) < 0.5
    query_N = np.repeat(np.arange(300), 20)
    found = statistics.paired_accuracy(ours_Q[query_N], theirs_Q[query_N], query_N)
    assert found.design_effect == pytest.approx(20 * 300 / 299)


def test_a_true_difference_of_the_detectable_size_is_found_four_times_in_five():
    """The standard error of 400 simulated experiments gives the size; the share with p < 0.05 lies near 0.8."""
    rng = np.random.default_rng(3)
    n = 80
    size = statistics.POWER_Z * np.sqrt(0.4**2 / n)
    count_DQ = statistics.draw_queries(n, 500, 0)
    zero = sample_of(np.zeros((1, n)), count_DQ, constant=True)
    sides = [sample_of(size + rng.normal(0, 0.4, (1, n)), count_DQ, constant=True) for _ in range(400)]
    tries = [statistics.difference(side, zero, "m", 0) for side in sides]
    assert 0.73 <= np.mean([found.p < 0.05 for found in tries]) <= 0.87
    assert np.mean([found.detectable() for found in tries]) == pytest.approx(size, rel=0.05)


def test_the_median_seed_is_the_lower_of_two_middle_ones():
    """Of (3, 1, 2) the third; of (4, 1, 3, 2) the value 2."""
    assert statistics.median_seed(np.array([3.0, 1.0, 2.0])) == 2
    assert statistics.median_seed(np.array([4.0, 1.0, 3.0, 2.0])) == 3
