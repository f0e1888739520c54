"""Agreement of two bundles over the last requests, without threads or sessions."""

from __future__ import annotations

import numpy as np
import pytest

from service.comparison import Agreement, Judged, compare


def test_the_latency_ratio_is_of_session_seconds_a_padded_token():
    """0.2 s for 100 tokens and 0.1 s for 50: 2 ms a token."""
    agreement = Agreement()
    judged = Judged(np.array([0.5]), np.array([2]), np.array([True]))
    for seconds, tokens in ((0.2, 100), (0.1, 50)):
        agreement.add(compare(judged, judged, locale="us", session_s=seconds, padded_tokens=tokens))
    assert agreement.seconds_per_token() == pytest.approx(0.002)


def test_the_window_forgets_the_oldest_requests():
    """A window of 3 requests: three sound ones after a bad one leave no trace of it."""
    agreement = Agreement(window=3)
    sound = Judged(np.array([0.1, 0.5, 0.9]), np.array([0, 2, 4]), np.array([False, True, True]))
    bad = Judged(sound.score_B[::-1], sound.tier_B[::-1], sound.kept_B[::-1])
    agreement.add(compare(sound, bad, locale="us"))
    assert (agreement.kappa(), agreement.rank_correlation()) == (-1.0, -1.0)

    for _ in range(3):
        agreement.add(compare(sound, sound, locale="us"))
    report = agreement.report()
    assert (report["requests"], report["pairs"], report["tier_kappa"]) == (3, 9, 1.0)
    assert (
        report["filtered_by_primary_only"],
        report["filtered_by_shadow_only"],
        report["flip_rate"]["value"],
    ) == (0, 0, 0.0)


def test_few_distinct_scores_say_nothing_of_the_ranking():
    """Two distinct scores of the primary: no rank correlation; the tiers are compared all the same."""
    judged = Judged(np.array([0.2, 0.2, 0.8]), np.array([1, 1, 4]), np.array([False, False, True]))
    shadow = Judged(np.array([0.1, 0.2, 0.3]), np.array([1, 1, 2]), np.array([False, False, True]))
    comparison = compare(judged, shadow, locale="us")
    assert np.isnan(comparison.rank_correlation)
    assert (comparison.n_pairs, comparison.n_flips) == (3, 1)
