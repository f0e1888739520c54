"""Agreement of two scorers against scikit-learn, scipy and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from relevance.metrics.agreement import quadratic_weighted_kappa, share_interval, spearman
from relevance.metrics.classification import confusion_matrix

TIERS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)
VALUES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40)


@given(TIERS)
def test_kappa_equals_scikit_learn(pairs):
    """Quadratic weights over all five tiers; nan where one tier is all that either gives."""
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    found = quadratic_weighted_kappa(confusion_matrix(a, b, 5))
    if len({*a, *b}) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(cohen_kappa_score(a, b, labels=list(range(5)), weights="quadratic"), abs=1e-9)


def test_kappa_of_equal_tiers_is_one_and_of_nothing_is_not_known():
    """A diagonal matrix; an empty one."""
    assert quadratic_weighted_kappa(np.diag([3, 1, 4, 1, 5])) == 1.0
    assert np.isnan(quadratic_weighted_kappa(np.zeros((5, 5), dtype=int)))


@given(VALUES)
def test_spearman_equals_scipy_with_ties(pairs):
    """Few distinct values, so most are tied; nan where a side is constant."""
    a, b = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    found = spearman(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


@given(st.integers(2, 400))
def test_a_share_without_any_hit_has_the_wilson_interval_of_its_pairs(n):
    """0 of 3n pairs: nothing says that queries differ, so scipy's interval for 3n draws."""
    expected = stats.binomtest(0, 3 * n).proportion_ci(method="wilson")
    found = share_interval(np.zeros(n, dtype=int), np.full(n, 3))
    assert (0.0, pytest.approx(0), pytest.approx(expected.high)) == (found.value, found.low, found.high)


def test_a_share_of_single_pair_queries_has_the_wilson_interval():
    """37 of 400 queries of one pair: the spread between queries is the binomial one, n - 1 for n."""
    expected = stats.binomtest(37, 400).proportion_ci(method="wilson")
    found = share_interval(np.array([1] * 37 + [0] * 363), np.ones(400, dtype=int))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_one_query_tells_nothing_of_the_spread():
    """From 0 to 1, whatever its share; without pairs there is no share either."""
    found = share_interval(np.array([20]), np.array([50]))
    assert (found.value, found.low, found.high) == (0.4, 0.0, 1.0)
    assert np.isnan(share_interval(np.array([], dtype=int), np.array([], dtype=int)).value)


def test_the_interval_covers_when_pairs_of_a_query_are_alike():
    """Each query has a share of its own, Beta(1, 9): of 300 simulations at least 90 % hold the true 0.1.

    An interval that takes the 60 · 20 pairs as independent holds it far less often, so the check can fail.
    """
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(300):
        total = np.full(60, 20)
        hit = rng.binomial(total, rng.beta(1, 9, 60))
        found = share_interval(hit, total)
        held += found.low <= 0.1 <= found.high
        wrong = stats.binomtest(int(hit.sum()), int(total.sum())).proportion_ci(method="wilson")
        naive += wrong.low <= 0.1 <= wrong.high
    assert held >= 270
    assert naive < 240
