"""Intervals of shares that no draw of the bootstrap moves."""

import numpy as np
import pytest
from scipy.stats import binomtest

from relevance.metrics.intervals import Interval, query_bootstrap, with_rare_events


@pytest.mark.parametrize(("events", "n"), [(0, 12), (12, 12), (0, 1), (0, 400)])
def test_a_share_of_none_or_all_has_the_exact_interval_of_its_queries(events, n):
    """As scipy has it; a percentile bootstrap alone says 0 to 0."""
    value_N = np.full(5 * n, events > 0)
    drawn = query_bootstrap(np.repeat(np.arange(n), 5).astype(str), lambda rows: float(value_N[rows].mean()), draws=20)
    found = with_rare_events(drawn, n, confidence=0.95)
    exact = binomtest(events, n).proportion_ci(0.95, method="exact")

    assert (drawn.low, drawn.high) == (drawn.value, drawn.value)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_any_other_interval_stays():
    """One that the draws moved, and one without queries."""
    for interval, n in ((Interval(0.0, 0.0, 0.1), 9), (Interval(0.5, 0.5, 0.5), 9), (Interval(0.0, 0.0, 0.0), 0)):
        assert with_rare_events(interval, n) == interval
