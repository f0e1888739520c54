"""Admission: who is late when all share, what is refused, what texts cost."""

from __future__ import annotations

from time import monotonic

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relevance.errors import OverloadError
from service.admission import SHARE, Admission, CostEstimator, finish_times
from service.scorer import Texts


def simulated(left: list[float], weights: list[float], speed: float, step: float = 0.01) -> list[float]:
    """When each flow is done if they share by weight, found by walking through time."""
    left, done, now = list(left), [0.0] * len(left), 0.0
    while any(amount > 0 for amount in left):
        active = [i for i, amount in enumerate(left) if amount > 0]
        total = sum(weights[i] for i in active)
        now += step
        for i in active:
            left[i] -= speed * step * weights[i] / total
            if left[i] <= 0:
                done[i] = now
    return done


@given(
    st.lists(st.tuples(st.floats(1, 500), st.sampled_from([0.25, 1.0, 4.0])), min_size=1, max_size=6),
)
def test_finish_times_are_those_of_a_walk_through_time(flows):
    """The formula against a simulation in steps of 10 ms, to a few steps a flow."""
    left, weights = [amount for amount, _ in flows], [weight for _, weight in flows]

    found = finish_times(np.asarray(left), np.asarray(weights), 100.0)

    assert simulated(left, weights, 100.0) == pytest.approx(found.tolist(), abs=0.01 * (1 + 2 * len(flows)))


def admit(admission: Admission, tokens: float, seconds: float, weight: float = 1.0):
    """Ask for room."""
    return admission.admit(tokens, weight=weight, deadline=monotonic() + seconds)


def test_a_request_is_refused_as_a_whole_when_it_would_be_late():
    """100 tokens/s, 100 wait: 100 more need 2 s; with 1.5 s they are refused, with 3 s admitted."""
    admission = Admission(lambda: 100.0, max_requests=10)
    admit(admission, 100, 60)

    with pytest.raises(OverloadError) as refused:
        admit(admission, 100, 1.5)
    admit(admission, 100, 3)

    assert refused.value.wait_s == pytest.approx(2 - 1.5 * SHARE, abs=0.05)
    assert (admission.n_requests, admission.left) == (2, 200)


def test_a_small_request_passes_a_large_one_because_it_shares():
    """10,000 tokens wait, 10 more are done in 0.2 s: fair queueing lets them in with a deadline of 0.3 s."""
    admission = Admission(lambda: 100.0, max_requests=10)
    admit(admission, 10_000, 1000)

    assert admit(admission, 10, 0.3).left == 10


def test_a_request_that_would_make_another_late_is_refused():
    """The first needs 0.9 of its 1.2 s alone; a second of 90 tokens would double that."""
    admission = Admission(lambda: 100.0, max_requests=10)
    admit(admission, 90, 1.2)

    with pytest.raises(OverloadError):
        admit(admission, 90, 60)


def test_a_request_already_late_bars_nobody():
    """What is lost anyway is no reason to refuse others."""
    admission = Admission(lambda: 100.0, max_requests=10)
    late = admit(admission, 10, 1)
    late.left, late.deadline = 500.0, monotonic() + 0.5

    assert admit(admission, 10, 60).left == 10


def test_the_first_request_is_admitted_whatever_it_costs():
    """Nobody else is there: a hopeless request gets what there is time for, and counts with half of that, at any time:
    also when the engines have computed as much of it already."""
    admission = Admission(lambda: 100.0, max_requests=10)

    ticket = admit(admission, 10_000, 1)

    assert ticket.hopeless
    assert admission.left == pytest.approx(0.5 * 100 * SHARE, rel=0.05)
    ticket.left -= 60
    assert admission.left == pytest.approx(0.5 * 100 * SHARE, rel=0.05)
    ticket.deadline = monotonic() + 0.5
    assert admission.left == pytest.approx(0.5 * 0.5 * 100 * SHARE, rel=0.05)
    ticket.left = 3
    assert admission.left == 3


def test_a_request_that_got_more_than_it_was_counted_with_hides_no_one_else():
    """Its tokens run below zero; what is left of the others is told all the same."""
    admission = Admission(lambda: 100.0, max_requests=10)
    admit(admission, 10_000, 1).left = -500.0
    admit(admission, 50, 60)

    assert (admission.left, admission.wait_s) == (50, 0.5)


def test_no_more_requests_than_the_bound():
    """Two are admitted, the third waits; after a release it is in."""
    admission = Admission(lambda: 100.0, max_requests=2)
    first = admit(admission, 1, 60)
    admit(admission, 1, 60)

    with pytest.raises(OverloadError, match="2 requests"):
        admit(admission, 1, 60)
    admission.release(first)
    admit(admission, 1, 60)

    assert admission.n_requests == 2


def test_before_the_first_measurement_everything_is_admitted():
    """Speed unknown: no wait can be estimated, so none is claimed."""
    admission = Admission(lambda: 0.0, max_requests=10)

    assert [admit(admission, 10**9, 0.1).left for _ in range(3)] == [10**9] * 3
    assert admission.wait_s == 0


def texts(items: list[str], locale: str = "us") -> Texts:
    """Cleaned texts of a request."""
    return Texts("kettle", items, locale, np.zeros(len(items), dtype=bool))


def test_costs_are_learnt_for_each_locale():
    """A locale of one character a token is estimated near its real cost after a few requests; others stay put."""
    costs = CostEstimator(max_pair_tokens=96)
    asked = texts(["電気ケトルステンレス"] * 20, "jp")
    real = 20 * (6 + 10 + 3)
    before = costs.tokens(asked)
    english = costs.tokens(texts(["steel kettle"]))
    for _ in range(5):
        costs.learn(asked, list(range(20)), real)

    assert before < 0.5 * real
    assert costs.tokens(asked) == pytest.approx(real, rel=0.05)
    assert costs.tokens(texts(["steel kettle"])) == english


def test_no_text_costs_more_than_the_longest_pair():
    """A title of a million characters is cut to the pair's limit before it is believed."""
    costs = CostEstimator(max_pair_tokens=96)

    assert costs.tokens(texts(["x" * 1_000_000, "x" * 1_000_000])) == 2 * 96
    assert costs.tokens(texts(["lamp", "x" * 1_000_000]), [1]) == 96
