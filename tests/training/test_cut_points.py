"""Cut points: the certified filter edge, the other three cuts, and what rules do to both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relevance.labels import ESCI
from relevance.policy import CutPoints, TierPolicy
from training.cut_points import (
    GRID,
    CalRows,
    FalseFilterRule,
    all_cut_points,
    certify_edge,
    clopper_pearson_upper,
    irrelevant_cut,
    one_exact_per_query,
    precision_cut,
    rule_outcomes,
)

RULE = FalseFilterRule()


def rows_of(score, exact=True, query_id=None, irrelevant_likely=False, worst=False, best=True):
    """Give calibration rows; scalars hold for all of them."""
    n = len(score)

    def column(value):
        return np.broadcast_to(np.asarray(value), n).copy()

    return CalRows(
        query_id=np.arange(n).astype(str) if query_id is None else np.asarray(query_id, dtype=np.str_),
        exact=column(exact),
        score=np.asarray(score, dtype=np.float64),
        irrelevant_likely=column(irrelevant_likely),
        kept_at_worst=column(worst),
        kept_at_best=column(best),
    )


@settings(deadline=None)
@given(st.integers(1, 400), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_upper_bound_is_where_so_few_events_become_unlikely(n, data, confidence):
    """At the bound p, P(X ≤ k) = 1 - confidence for X ~ Binomial(n, p): the definition."""
    events = data.draw(st.integers(0, n - 1))
    bound = clopper_pearson_upper(events, n, confidence)
    assert stats.binom.cdf(events, n, bound) == pytest.approx(1 - confidence, abs=1e-6)
    assert bound > events / n


def test_the_bound_says_nothing_without_trials_or_without_survivors():
    """No trial or all events: 1."""
    assert clopper_pearson_upper(0, 0, 0.95) == 1.0
    assert clopper_pearson_upper(5, 5, 0.95) == 1.0


@pytest.mark.parametrize(("n", "certified"), [(58, False), (59, True)])
def test_fifty_nine_queries_are_the_least_that_can_show_five_percent(n, certified):
    """Without any event 1 - 0.05^(1/n) ≤ 0.05 needs n ≥ 59."""
    assert certified == certify_edge(rows_of(np.full(n, 0.9)), RULE).certified


def test_the_edge_rises_until_the_bound_fails():
    """1,000 Exact pairs, scores 0.0005 … 0.9995: at cut 0.03 thirty are filtered (bound 0.0405), at 0.04 forty (bound
    0.0521 > 0.05), so the edge is 0.03.
    """
    edge = certify_edge(rows_of((np.arange(1000) + 0.5) / 1000), RULE)
    assert (edge.cut, edge.certified, edge.n_exact) == (0.03, True, 1000)
    assert edge.bound == pytest.approx(clopper_pearson_upper(30, 1000, 0.95))


def test_the_test_stops_at_the_first_failure():
    """One pair per query, eight of a hundred score below 0.1: no higher cut is tried, although none is worse."""
    score = np.where(np.arange(100) < 8, 0.05, 0.95)
    edge = certify_edge(rows_of(score), RULE)
    assert edge.cut == 0.05
    assert edge.bound == pytest.approx(clopper_pearson_upper(0, 100, 0.95))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(60, 200), st.floats(0.01, 0.3))
def test_a_certified_edge_keeps_its_bound_and_every_lower_cut_does_too(seed, n, epsilon):
    """Fixed-sequence testing: all candidates up to the chosen one pass, the next one (if any) fails."""
    rng = np.random.default_rng(seed)
    rows = rows_of(rng.beta(2, 2, n), query_id=rng.integers(0, n // 2, n))
    rule = FalseFilterRule(epsilon=epsilon, seed=seed)
    edge = certify_edge(rows, rule)
    drawn = rows.rows(one_exact_per_query(rows, seed))
    bounds = [clopper_pearson_upper(int(drawn.filtered(cut).sum()), len(drawn), 0.95) for cut in GRID]
    chosen = GRID.tolist().index(edge.cut)
    assert edge.certified == (bounds[chosen] <= epsilon)
    assert edge.bound == pytest.approx(bounds[chosen])
    if edge.certified:
        assert max(bounds[: chosen + 1]) <= epsilon
        assert chosen == len(GRID) - 1 or bounds[chosen + 1] > epsilon


def test_the_promise_holds_on_fresh_queries():
    """Scores of Exact are uniform, so P(filtered | Exact) is the cut itself: of 50 repetitions at 95 % at most 7
    may exceed 0.05 (the 99 % point of Binomial(50, 0.05)).
    """
    rng = np.random.default_rng(5)
    cuts = [certify_edge(rows_of(rng.random(150)), RULE).cut for _ in range(50)]
    assert sum(cut > 0.05 for cut in cuts) <= stats.binom.ppf(0.99, 50, 0.05)
    assert max(cuts) > 0


def test_one_exact_pair_of_each_query_is_drawn():
    """Query b has no Exact pair; the draw is the same for the same seed."""
    rows = rows_of([0.1] * 6, exact=[True, True, False, True, True, True], query_id=["a", "a", "b", "c", "c", "c"])
    drawn = one_exact_per_query(rows, 3)
    assert rows.query_id[drawn].tolist() == ["a", "c"]
    assert rows.exact[drawn].all()
    assert drawn.tolist() == one_exact_per_query(rows, 3).tolist()
    assert len({tuple(one_exact_per_query(rows, seed)) for seed in range(20)}) > 1


def test_rules_count_as_filtering():
    """Ten of a hundred Exact pairs are capped by a rule: the bound at cut 0 is 0.164, so nothing can be certified."""
    rows = rows_of(np.full(100, 0.9), best=np.arange(100) >= 10)
    edge = certify_edge(rows, RULE)
    assert not edge.certified
    assert edge.bound == pytest.approx(clopper_pearson_upper(10, 100, 0.95))
    assert edge.bootstrap_bound > 0.1


def test_pairs_that_rules_keep_are_never_filtered():
    """A floor holds all pairs, so even cut 1 is certified."""
    assert certify_edge(rows_of(np.zeros(100), worst=True), RULE).cut == 1.0


def test_without_exact_pairs_nothing_is_certified():
    """There is nothing to show it on."""
    edge = certify_edge(rows_of([0.5, 0.6], exact=False), RULE)
    assert (edge.certified, edge.n_exact, edge.bound, edge.bootstrap_bound) == (False, 0, 1.0, 1.0)


def test_the_lowest_cut_follows_the_likely_irrelevant():
    """Scores 0.00 … 0.99, P(Irrelevant) ≥ 0.5 below 0.3: the cut is 0.3, or the edge where that is lower."""
    score = np.arange(100) / 100
    rows = rows_of(score, irrelevant_likely=score < 0.3)
    assert irrelevant_cut(rows, 0.5) == 0.3
    assert irrelevant_cut(rows, 0.2) == 0.2


def test_an_upper_cut_is_the_lowest_that_reaches_its_precision():
    """Exact from 0.5 up, 0.00 … 0.99: above 0.45 fifty of 55 are Exact (0.909), above 0.44 fifty of 56 (0.893)."""
    score = np.arange(100) / 100
    rows = rows_of(score, exact=score >= 0.5)
    assert precision_cut(rows, 0.9, 0.0) == 0.45
    assert precision_cut(rows, 0.9, 0.6) == 0.6
    assert precision_cut(rows_of(score, exact=False), 0.1, 0.0) is None


def test_a_handful_of_pairs_does_not_make_a_precision():
    """Nineteen Exact pairs above everything else are fewer than twenty."""
    score = np.concatenate([np.full(100, 0.2), np.full(19, 0.9)])
    assert precision_cut(rows_of(score, exact=score > 0.5), 0.9, 0.0) is None


def test_unreachable_precision_merges_tiers_and_says_so():
    """Half are Exact at any score: neither 0.7 nor 0.9 can be reached, so no pair gets a tier above 2."""
    rng = np.random.default_rng(0)
    rows = rows_of(rng.uniform(0.3, 0.9, 400), exact=np.arange(400) % 2 == 0)
    cuts, merged = all_cut_points(
        rows, certify_edge(rows, RULE), upper_precision=0.7, exact_precision=0.9, epsilon=0.05
    )
    assert merged == ("2|3", "3|4")
    assert cuts.values[2:] == (1.0, 1.0)
    assert cuts.certified


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 150))
def test_cut_points_never_decrease(seed, n):
    """Whatever the data: CutPoints refuses anything else."""
    rng = np.random.default_rng(seed)
    rows = rows_of(rng.random(n), exact=rng.random(n) < 0.6, irrelevant_likely=rng.random(n) < 0.3)
    cuts, _ = all_cut_points(rows, certify_edge(rows, RULE), upper_precision=0.7, exact_precision=0.9, epsilon=0.05)
    assert list(cuts.values) == sorted(cuts.values)


def test_what_rules_alone_decide_is_read_off_the_policy():
    """A cap to 1 always filters, a floor to 2 never does, a cap to 3 decides nothing, and the later rule wins."""
    rules = [
        {"name": "complement", "class_at_least": {"C": 0.5}, "cap_tier": 1},
        {"name": "mug", "query_matches": "mug", "floor_tier": 2, "locales": ["us"]},
        {"name": "cup", "query_matches": "cup", "cap_tier": 3},
    ]
    cuts = CutPoints(values=(0, 0, 0, 0), certified=False)
    policy = TierPolicy.model_validate({"version": "v", "pooled": cuts, "locales": {"us": cuts}, "rules": rules})
    complement, exact = [0, 0, 1, 0], [1, 0, 0, 0]
    worst, best = rule_outcomes(
        policy,
        np.array([complement, exact, complement, exact, exact], dtype=np.float64),
        ESCI,
        queries=np.array(["cup", "cup", "mug", "mug", "mug"]),
        policy_locales=np.array(["us", "us", "us", "us", "jp"]),
    )
    assert worst.tolist() == [False, False, True, True, False]
    assert best.tolist() == [False, True, True, True, True]
