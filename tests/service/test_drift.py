"""Drift of recent pairs against the bundle's baseline."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from relevance.bundle import Baseline, Histogram, LocaleBaseline
from service.drift import MIN_PAIRS, PAIRS_PER_REQUEST, DriftMonitor
from service.telemetry import Telemetry

SCORE_EDGES = tuple(round(0.05 * i, 2) for i in range(21))
TOKEN_EDGES = tuple(float(e) for e in range(0, 136, 8))
CUTS = (0.1, 0.25, 0.45, 0.65)
SHAPES = {"us": (4, 2), "es": (2, 2), "jp": (2, 4)}
ALERT = 0.2


def draw(rng: np.random.Generator, locale: str, n: int):
    """Give scores, tiers and lengths of n pairs of a locale as the tiny world has them."""
    score = rng.beta(*SHAPES[locale], n)
    length = np.clip(rng.normal(30, 8, n), 5, 128).astype(np.int64)
    return score, np.searchsorted(CUTS, score, side="right").astype(np.int64), length


def baseline_of(**rows) -> Baseline:
    """Give the baseline of (scores, tiers, lengths) by locale."""
    return Baseline(
        locales={
            locale: LocaleBaseline(
                score=Histogram(edges=SCORE_EDGES, counts=tuple(np.histogram(score, SCORE_EDGES)[0].tolist())),
                tier=tuple(np.bincount(tier, minlength=5).tolist()),
                tokens=Histogram(edges=TOKEN_EDGES, counts=tuple(np.histogram(length, TOKEN_EDGES)[0].tolist())),
            )
            for locale, (score, tier, length) in rows.items()
        }
    )


def feed(monitor: DriftMonitor, locale: str, rows, size: int = PAIRS_PER_REQUEST) -> None:
    """Let the monitor observe rows as requests of `size` pairs."""
    score, tier, length = rows
    for start in range(0, len(score), size):
        some = slice(start, start + size)
        monitor.observe(locale, score[some], tier_B=tier[some], length_B=length[some])


def gauge(telemetry: Telemetry, what: str, locale: str) -> float | None:
    """Give the value of one series as scraped, None if there is no such series."""
    registry: CollectorRegistry = telemetry.registry
    return registry.get_sample_value("relevance_drift_psi", {"what": what, "locale": locale})


@pytest.fixture
def monitor(rng: np.random.Generator):
    """A monitor of three locales, 2,000 baseline pairs each."""
    return DriftMonitor(baseline_of(**{name: draw(rng, name, 2000) for name in SHAPES}), Telemetry())


def test_pairs_like_the_baseline_do_not_alert_even_at_the_least_count():
    """40 seeds, a baseline of 300 pairs and MIN_PAIRS recent ones of the same world: each index stays below 0.1."""
    worst = 0.0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        monitor = DriftMonitor(baseline_of(us=draw(rng, "us", 300)), Telemetry())
        feed(monitor, "us", draw(rng, "us", MIN_PAIRS))
        worst = max(worst, *monitor.psi().values())
    assert 0 < worst < 0.1


def test_each_kind_of_shift_alerts_under_its_own_name(rng: np.random.Generator):
    """Scores lowered by 0.2, tiers all 0, texts of half the length: exactly that index passes 0.2."""
    score, tier, length = draw(rng, "us", 4000)
    for what, rows in {
        "score": (np.clip(score - 0.2, 0, 1), tier, length),
        "tier": (score, np.zeros_like(tier), length),
        "length": (score, tier, length // 2),
    }.items():
        baseline = baseline_of(us=(score, tier, length))
        telemetry = Telemetry()
        shifted = DriftMonitor(baseline, telemetry)
        feed(shifted, "us", rows)
        shifted.update()
        seen = {name: gauge(telemetry, name, "us") for name in ("score", "tier", "length")}
        assert {what} == {name for name, value in seen.items() if value is not None and value > ALERT}


def test_a_change_of_the_locales_shares_alone_moves_nothing(monitor: DriftMonitor, rng: np.random.Generator):
    """A season in which jp, of lower scores, sends most: no locale alerts, though all together would."""
    for name, n in {"us": 600, "es": 600, "jp": 12_000}.items():
        feed(monitor, name, draw(rng, name, n))
    assert max(monitor.psi().values()) < 0.1

    mixed = DriftMonitor(baseline_of(us=draw(rng, "us", 2000)), Telemetry())
    feed(mixed, "us", draw(rng, "jp", 2000))
    assert mixed.psi()["score", "us"] > ALERT


def test_the_window_forgets(rng: np.random.Generator):
    """After a shift, two half-windows of sound pairs bring the index down again."""
    monitor = DriftMonitor(baseline_of(us=draw(rng, "us", 2000)), Telemetry(), half_window=1000)
    feed(monitor, "us", draw(rng, "jp", 2000))
    assert monitor.psi()["score", "us"] > ALERT

    feed(monitor, "us", draw(rng, "us", 2100))
    assert monitor.psi()["score", "us"] < 0.1


def test_before_enough_pairs_the_figure_is_nan_not_zero(rng: np.random.Generator):
    """One pair short of MIN_PAIRS the series exists and is nan; one more and it has a value."""
    telemetry = Telemetry()
    monitor = DriftMonitor(baseline_of(us=draw(rng, "us", 2000)), telemetry)
    assert np.isnan(gauge(telemetry, "score", "us"))

    feed(monitor, "us", draw(rng, "us", MIN_PAIRS - 1))
    monitor.update()
    assert np.isnan(gauge(telemetry, "tier", "us"))

    feed(monitor, "us", draw(rng, "us", 1))
    monitor.update()
    assert gauge(telemetry, "tier", "us") >= 0


def test_locales_without_a_fair_baseline_have_no_series(rng: np.random.Generator):
    """One of 64 pairs is too small, one unknown has none: neither is counted anywhere, nor an empty request."""
    telemetry = Telemetry()
    monitor = DriftMonitor(baseline_of(us=draw(rng, "us", 2000), es=draw(rng, "es", 64)), telemetry)
    for name in ("es", "jp"):
        feed(monitor, name, draw(rng, name, 1000))
    monitor.observe("us", np.empty(0), tier_B=np.empty(0, dtype=np.int64), length_B=np.empty(0, dtype=np.int64))
    monitor.update()
    assert [gauge(telemetry, "score", name) for name in ("es", "jp")] == [None, None]
    assert np.isnan(list(monitor.psi().values())).all()


def test_one_huge_request_does_not_fill_the_window(monitor: DriftMonitor, rng: np.random.Generator):
    """3,000 pairs of one query count as 8, so MIN_PAIRS is not reached; 63 such requests reach it."""
    feed(monitor, "us", draw(rng, "us", 3000), size=3000)
    assert np.isnan(monitor.psi()["score", "us"])

    for _ in range(62):
        feed(monitor, "us", draw(rng, "us", 3000), size=3000)
    assert monitor.psi()["score", "us"] < 0.1


def test_a_new_bundle_drops_the_series_of_locales_it_does_not_know(rng: np.random.Generator):
    """The gauge is shared by successive monitors; only the newest one's locales remain."""
    telemetry = Telemetry()
    for name in ("us", "jp"):
        DriftMonitor(baseline_of(**{name: draw(rng, name, 2000)}), telemetry)
    assert gauge(telemetry, "score", "us") is None
    assert np.isnan(gauge(telemetry, "score", "jp"))


def test_scores_and_lengths_outside_the_edges_count_in_the_outer_bins(rng: np.random.Generator):
    """A bundle whose limit was raised sends longer pairs: drift, not an error."""
    score, tier, length = draw(rng, "us", 2000)
    monitor = DriftMonitor(baseline_of(us=(score, tier, length)), Telemetry())
    feed(monitor, "us", (np.ones(2000), tier, np.full(2000, 10_000)))
    assert monitor.psi()["length", "us"] > ALERT
    assert monitor.psi()["score", "us"] > ALERT
