"""Lifts, CUPED, always-valid readings, power and guardrails against closed forms, regression and simulation."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from relevance.errors import InputError
from training.ab.estimate import (
    Lift,
    Ratio,
    adjusted_ratios,
    arm_ratio,
    lift_of,
    normal_quantile,
    sample_ratio_p,
)
from training.ab.events import Events, UserTotals, user_totals
from training.ab.guardrail import latency_change
from training.ab.power import detectable_lift, power_at, relative_variance_of, users_per_arm
from training.ab.sequential import FEWEST_USERS, always_valid, looks
from training.ab.simulate import Traffic, simulate
from training.multiplicity import holm

LIFT = 0.1
SMALL = Traffic(users=250, days=6, lift=LIFT)


@pytest.fixture(scope="module")
def experiments():
    """Three hundred small experiments of a known lift."""
    return [simulate(SMALL, seed) for seed in range(300)]


def lifts_of(experiments, column):
    """Read each experiment with rows as units, users as units, and CUPED."""
    found = {"rows": [], "users": [], "cuped": []}
    for events in experiments:
        totals = user_totals(events, column)
        rows = UserTotals(events.variant_U[events.user_N], events.values[column], events.values["impressions"])
        control, treatment = adjusted_ratios(totals, (0, 1))
        found["rows"].append(lift_of(arm_ratio(rows, 1), arm_ratio(rows, 0)))
        found["users"].append(lift_of(arm_ratio(totals, 1), arm_ratio(totals, 0)))
        found["cuped"].append(lift_of(treatment, control))
    return found


def test_the_variance_of_a_ratio_is_the_textbook_formula(rng):
    """(σ_N² − 2Rσ_ND + R²σ_D²) / (n μ_D²), from numpy's covariance."""
    denominator = rng.integers(1, 30, 200).astype(float)
    numerator = denominator * rng.random(200)
    ratio = arm_ratio(UserTotals(np.zeros(200, dtype=int), numerator, denominator), 0)
    cov, r = np.cov(numerator, denominator), numerator.sum() / denominator.sum()
    expected = (cov[0, 0] - 2 * r * cov[0, 1] + r**2 * cov[1, 1]) / (200 * denominator.mean() ** 2)
    assert ratio.value == pytest.approx(r)
    assert ratio.variance == pytest.approx(expected)


def test_a_denominator_of_one_gives_the_plain_mean(rng):
    """R is the mean and its variance s²/n; the interval is the normal one."""
    values = rng.exponential(2.0, 500)
    ratio = arm_ratio(UserTotals(np.zeros(500, dtype=int), values, np.ones(500)), 0)
    assert ratio.variance == pytest.approx(values.var(ddof=1) / 500)
    expected = stats.norm.interval(0.9, values.mean(), stats.sem(values))
    assert ratio.interval(0.9) == pytest.approx(expected)


def test_the_lift_interval_is_symmetric_on_the_logarithm():
    """Swapping the arms turns [low, high] into [1/(1+high), 1/(1+low)] − 1 and leaves p as it was."""
    a, b = Ratio(0.05, 1e-6, 100), Ratio(0.04, 4e-6, 100)
    forth, back = lift_of(a, b), lift_of(b, a)
    assert forth.value == pytest.approx(0.25)
    assert (1 + forth.low) * (1 + back.high) == pytest.approx(1)
    assert forth.p == pytest.approx(back.p)
    z = np.log(1.25) / np.sqrt(1e-6 / 0.05**2 + 4e-6 / 0.04**2)
    assert forth.p == pytest.approx(2 * stats.norm.sf(z))


def test_a_lift_of_nothing_is_not_known():
    """No clicks in one arm: nan, not infinity."""
    lift = lift_of(Ratio(0.0, 0.0, 10), Ratio(0.04, 1e-6, 10))
    assert all(np.isnan(getattr(lift, name)) for name in lift.__slots__)
    assert all(np.isnan(always_valid(lift, planned_lift=0.1)))


def test_a_ratio_as_good_as_nothing_has_no_lift():
    """A thousand standard errors wide on the logarithm: nan and no overflow; 0.05 ± 0.05 still has a lift."""
    one = Ratio(0.04, 1e-6, 10)
    assert not lift_of(Ratio(1e-9, 1e-6, 10), one).known
    assert not lift_of(one, Ratio(1e-9, 1e-6, 10)).known
    assert lift_of(Ratio(0.05, 0.05**2, 10), one).known


def test_ratios_alike_for_all_users_differ_or_not_without_doubt():
    """0.3 of every denominator: what rounding leaves is no variance; p is 1 where the arms agree, else 0."""
    denominator = np.arange(1.0, 41.0) / 3
    arm = np.arange(40) % 2
    alike = UserTotals(arm, 0.3 * denominator, denominator)
    lift = lift_of(arm_ratio(alike, 1), arm_ratio(alike, 0))
    assert (lift.value, lift.variance, lift.p) == (pytest.approx(0, abs=1e-12), 0.0, 1.0)
    apart = UserTotals(arm, (0.3 + 0.1 * arm) * denominator, denominator)
    lift = lift_of(arm_ratio(apart, 1), arm_ratio(apart, 0))
    assert (lift.value, lift.low, lift.p) == (pytest.approx(1 / 3), lift.value, 0.0)


def test_an_arm_of_one_user_or_without_impressions_is_refused():
    """No variance can be had from either."""
    with pytest.raises(InputError, match="found 1 users"):
        arm_ratio(UserTotals(np.array([0]), np.ones(1), np.ones(1)), 0)
    with pytest.raises(InputError, match="denominator of 0"):
        arm_ratio(UserTotals(np.array([0, 0]), np.ones(2), np.zeros(2)), 0)


def test_cuped_of_plain_means_is_regression_on_the_past(rng):
    """With denominators of 1 the adjusted difference is the least-squares coefficient beside the past."""
    arm, past = rng.integers(0, 2, 400), rng.normal(5, 1, 400)
    values = 3 + 0.2 * arm + 0.8 * past + rng.normal(size=400)
    totals = UserTotals(arm, values, np.ones(400), past, np.ones(400))
    control, treatment = adjusted_ratios(totals, (0, 1))
    coefficients = np.linalg.lstsq(np.stack([np.ones(400), arm, past], axis=1), values, rcond=None)[0]
    assert treatment.value - control.value == pytest.approx(coefficients[1])
    assert control.variance < arm_ratio(totals, 0).variance


def test_cuped_needs_a_past_that_differs():
    """No past, an empty one and one alike for all give nothing to adjust by."""
    arm, ones = np.array([0, 0, 1, 1]), np.ones(4)
    assert adjusted_ratios(UserTotals(arm, ones, ones), (0, 1)) is None
    assert adjusted_ratios(UserTotals(arm, ones, ones, 0 * ones, 0 * ones), (0, 1)) is None
    assert adjusted_ratios(UserTotals(arm, ones, ones, ones, ones), (0, 1)) is None
    sizes = np.arange(1.0, 41.0) / 3
    alike_but_for_rounding = UserTotals(np.arange(40) % 2, sizes, np.ones(40), 0.3 * sizes, sizes)
    assert adjusted_ratios(alike_but_for_rounding, (0, 1)) is None


def test_cuped_gives_nothing_where_it_would_push_a_ratio_below_nothing():
    """Pasts 0, 2 and 8, 10, values 1, 3 and 0, 2: within arms the slope is 1, so the second arm's 1 becomes 1 − 4 < 0.

    With values 10 higher the same adjustment leaves 7, and there is one.
    """
    arm, past, ones = np.array([0, 0, 1, 1]), np.array([0.0, 2.0, 8.0, 10.0]), np.ones(4)
    values = np.array([1.0, 3.0, 0.0, 2.0])
    assert adjusted_ratios(UserTotals(arm, values, ones, past, ones), (0, 1)) is None
    control, treatment = adjusted_ratios(UserTotals(arm, values + 10, ones, past, ones), (0, 1))
    assert (control.value, treatment.value) == (pytest.approx(16), pytest.approx(7))


@pytest.mark.parametrize("column", ["clicks", "revenue"])
def test_user_intervals_cover_the_lift_and_row_intervals_do_not(experiments, column):
    """Of 300 nominal 95 % intervals: 4 sd below would be 90 %; intervals of rows fall short of 91 %."""
    found = lifts_of(experiments, column)
    covered = {name: np.mean([one.low <= LIFT <= one.high for one in of]) for name, of in found.items()}
    assert 0.915 <= covered["users"] <= 0.995
    assert 0.905 <= covered["cuped"] <= 0.995
    assert covered["rows"] < 0.91


def test_cuped_shortens_intervals_and_moves_no_mean(experiments):
    """The adjusted log lifts average to the true one within 4 standard errors, on less variance."""
    found = lifts_of(experiments, "clicks")
    values = np.log1p([one.value for one in found["cuped"]])
    assert abs(values.mean() - np.log1p(LIFT)) < 4 * values.std() / np.sqrt(len(values))
    assert np.mean([one.variance for one in found["cuped"]]) < 0.9 * np.mean([one.variance for one in found["users"]])


def test_the_planner_foretells_the_share_found(experiments):
    """Variance from separate traffic; the share of 300 experiments with p ≤ 0.05 lies within 4 binomial sd."""
    pilot = user_totals(simulate(Traffic(users=5000, days=SMALL.days), seed=10_000), "relevant_impressions")
    small = 0.02
    variance = relative_variance_of(arm_ratio(pilot, 0))
    planned = power_at(variance, small, SMALL.users)
    found = []
    for seed in range(150):
        totals = user_totals(
            simulate(Traffic(users=SMALL.users, days=SMALL.days, lift=small), seed), "relevant_impressions"
        )
        found.append(lift_of(arm_ratio(totals, 1), arm_ratio(totals, 0)).p <= 0.05)
    assert 0.05 < planned < 0.95
    assert abs(np.mean(found) - planned) < 4 * np.sqrt(planned * (1 - planned) / len(found))


def test_planned_users_have_the_planned_power():
    """A round trip; one user fewer would not do; the detectable lift of that many is the lift."""
    n = users_per_arm(2.1, 0.03, power=0.9, confidence=0.99)
    assert power_at(2.1, 0.03, n, confidence=0.99) >= 0.9 > power_at(2.1, 0.03, n - 2, confidence=0.99)
    assert detectable_lift(2 * 2.1 / n, power=0.9, confidence=0.99) == pytest.approx(0.03, rel=1e-3)
    assert users_per_arm(1.0, 0.01) == int(np.ceil(2 * (1.959964 + 0.841621) ** 2 / np.log(1.01) ** 2))


@pytest.mark.parametrize(
    "wrong",
    [
        (1.0, float("nan"), 0.8),
        (1.0, float("inf"), 0.8),
        (1.0, 0.0, 0.8),
        (1.0, -1.0, 0.8),
        (0.0, 0.1, 0.8),
        (1.0, 0.1, 0.05),
        (1.0, 0.1, 1.0),
    ],
)
def test_an_impossible_plan_is_refused(wrong):
    """No lift, the end of all revenue, no variance, a power below the level or of 1."""
    variance, lift, power = wrong
    with pytest.raises(InputError, match="expected"):
        users_per_arm(variance, lift, power=power)


def test_the_sample_ratio_check_is_the_squared_z_test():
    """Two arms of 5,100 and 4,900: z² = 4 exactly, p = P(χ²₁ > 4); uneven plans count."""
    assert sample_ratio_p([5100, 4900], [0.5, 0.5]) == pytest.approx(stats.chi2.sf(4, 1))
    assert sample_ratio_p([9000, 1000], [9, 1]) == pytest.approx(1)
    with pytest.raises(InputError, match="positive shares"):
        sample_ratio_p([10, 10], [1.0, 0.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p):
    """Adjusted p of i: the largest |S|·min over all sets S that hold i, at most 1."""
    sets = [s for size in range(1, len(p) + 1) for s in combinations(range(len(p)), size)]
    expected = [min(1.0, max(len(s) * min(p[j] for j in s) for s in sets if i in s)) for i in range(len(p))]
    assert holm(p) == pytest.approx(expected)


def test_holm_leaves_the_unknown_out():
    """nan is kept and does not count in the family."""
    assert holm([0.01, float("nan"), 0.04]) == pytest.approx([0.02, float("nan"), 0.04], nan_ok=True)


def lift_with(theta, variance):
    """Give a lift of this log ratio and variance."""
    return Lift(float(np.expm1(theta)), 0.0, 0.0, variance, 1.0)


@pytest.mark.parametrize(("theta", "variance"), [(0.0, 0.01), (0.05, 0.001), (-0.3, 0.004)])
def test_the_always_valid_p_is_one_over_the_integrated_likelihood_ratio(theta, variance):
    """∫ N(θ; t, V) N(t; 0, τ²) dt / N(θ; 0, V), by quadrature."""
    tau = np.log1p(0.08)
    scale = np.sqrt(variance)
    mixture, _ = integrate.quad(
        lambda t: stats.norm.pdf(theta, t, scale) * stats.norm.pdf(t, 0, tau), -2, 2, points=[theta, 0]
    )
    _, _, p = always_valid(lift_with(theta, variance), planned_lift=0.08)
    assert p == pytest.approx(min(1, stats.norm.pdf(theta, 0, scale) / mixture), rel=1e-5)


def test_a_look_at_next_to_nothing_is_unknown_and_no_overflow():
    """Log variance 0.3 where a lift of 0.1 % was planned: the upper end is e^900 and more."""
    assert np.isnan(always_valid(lift_with(0.0, 0.3), planned_lift=0.001)).all()
    assert np.isfinite(always_valid(lift_with(0.0, 0.3), planned_lift=0.1)).all()


@given(st.floats(-0.5, 0.5), st.floats(1e-5, 0.1), st.floats(0.01, 0.5))
def test_the_always_valid_interval_excludes_no_lift_exactly_when_p_is_small(theta, variance, planned):
    """Interval and p are one rule; the interval is never shorter than the fixed-horizon one."""
    low, high, p = always_valid(lift_with(theta, variance), planned_lift=planned)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (low > 0 or high < 0)
    assert np.log1p(high) - theta > normal_quantile(0.95) * np.sqrt(variance)


def test_peeking_deceives_the_fixed_test_and_not_the_always_valid_one(rng):
    """300 walks of 120 looks at no effect: the fixed test is fooled often, the other at most in 5 % (+ 3 sd)."""
    means = np.cumsum(rng.normal(size=(300, 120)), axis=1) / np.arange(1, 121)
    variances = 0.02 / np.arange(1, 121)
    theta = means * np.sqrt(0.02)
    fixed = np.abs(theta) / np.sqrt(variances) > normal_quantile(0.95)
    p = np.array(
        [
            [always_valid(lift_with(t, v), planned_lift=0.05)[2] for t, v in zip(walk, variances, strict=True)]
            for walk in theta
        ]
    )
    assert np.mean(fixed.any(axis=1)) > 0.25
    assert np.mean((p <= 0.05).any(axis=1)) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_the_last_look_is_the_whole_experiment():
    """Its lift is the CUPED one of all rows; p never rises; a look waits for enough users."""
    events = simulate(Traffic(users=400, days=5, lift=0.3), seed=1)
    found = looks(events, "clicks", arms=(0, 1), planned_lift=0.2)
    control, treatment = adjusted_ratios(user_totals(events, "clicks"), (0, 1))
    assert found[-1].value == pytest.approx(lift_of(treatment, control).value)
    assert found[-1].users == len(events.variant_U)
    assert np.all(np.diff([look.p for look in found]) <= 0)
    few = simulate(Traffic(users=FEWEST_USERS // 2, days=5), seed=1)
    assert looks(few, "clicks", arms=(0, 1), planned_lift=0.2) == []


def latency_events(rng, shift):
    """Give 800 users of five requests; the treatment is slower by a shift in milliseconds."""
    user = np.repeat(np.arange(800), 5)
    variant = (np.arange(800) % 2).astype(int)
    slow = 40 + 5 * rng.standard_normal(800)[user] + rng.exponential(10, 4000) + shift * variant[user]
    return Events(user, np.zeros(4000, dtype=int), {"latency_ms": slow}, {}, variant, ("a", "b"), {}, ("",))


def test_a_slower_treatment_is_seen_in_its_p99(rng):
    """A shift of 60 ms lies within the difference's interval, which excludes 0; p99 is numpy's inverted CDF."""
    events = latency_events(rng, 60.0)
    change = latency_change(events, (0, 1), draws=200)
    assert 0 < change.difference.low <= 60 <= change.difference.high
    of_control = events.values["latency_ms"][events.variant_U[events.user_N] == 0]
    assert change.control.value == np.quantile(of_control, 0.99, method="inverted_cdf")
    assert change.difference.value == pytest.approx(change.treatment.value - change.control.value)


def test_the_same_latency_is_not_taken_for_a_change(rng):
    """No shift: 0 lies within a 99.9 % interval; the same seed gives the same interval."""
    events = latency_events(rng, 0.0)
    change = latency_change(events, (0, 1), confidence=0.999, draws=200)
    assert change.difference.low <= 0 <= change.difference.high
    assert latency_change(events, (0, 1), confidence=0.999, draws=200) == change
