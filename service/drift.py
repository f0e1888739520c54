"""Drift: how far recent scores, tiers and lengths lie from the bundle's baseline, locale by locale.

Suffixes: B pairs, M bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import nan
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from relevance.bundle import Baseline, Histogram, LocaleBaseline
from relevance.labels import N_TIERS
from relevance.metrics.drift import population_stability_index
from service.telemetry import Telemetry

HALF_WINDOW = 5_000
MIN_PAIRS = 500
MIN_BASELINE = 100
PAIRS_PER_REQUEST = 8
"""Pairs observed of one request, evenly spread: its pairs are alike, so more would look like drift by themselves."""
_MOST_BINS = 10
_NOISE = 0.03
_PRIOR = 0.5


@dataclass(frozen=True, slots=True)
class _Bins:
    """Reference counts; `edges` lie between neighbouring bins, the first and the last bin are open."""

    edges: NDArray[np.float64]
    count_M: NDArray[np.int64]

    def count(self, values_B: NDArray[np.number]) -> NDArray[np.int64]:
        return np.bincount(np.searchsorted(self.edges, values_B, side="right"), minlength=len(self.count_M))

    def distance(self, count_M: NDArray[np.int64]) -> float:
        """Give the PSI; half a pair more in each bin keeps one that was empty by chance from counting as drift."""
        return population_stability_index(self.count_M + _PRIOR, count_M + _PRIOR)


class _Window:
    """The recent pairs of one locale in two halves: when the newer one is full, the older one is forgotten."""

    def __init__(self, baseline: LocaleBaseline, half: int) -> None:
        self.bins = {
            "score": _merged(baseline.score),
            "tier": _Bins(np.arange(1.0, N_TIERS), np.asarray(baseline.tier)),
            "length": _merged(baseline.tokens),
        }
        self._half = half
        self.older = self.newer = {what: np.zeros_like(bins.count_M) for what, bins in self.bins.items()}

    def add(self, values_B: dict[str, NDArray[np.number]]) -> None:
        if self.newer["tier"].sum() >= self._half:
            self.older = self.newer
            self.newer = {what: np.zeros_like(count_M) for what, count_M in self.older.items()}
        self.newer = {what: self.newer[what] + bins.count(values_B[what]) for what, bins in self.bins.items()}

    def distances(self, min_pairs: int) -> dict[str, float]:
        count_M = {what: self.older[what] + self.newer[what] for what in self.bins}
        if count_M["tier"].sum() < min_pairs:
            return dict.fromkeys(self.bins, nan)
        return {what: bins.distance(count_M[what]) for what, bins in self.bins.items()}


class DriftMonitor:
    """Population stability index of recent pairs against the baseline of the bundle that scored them.

    Without drift the expected index is about (bins - 1) · (1 / n + 1 / m), n recent and m baseline pairs. Neighbouring
    bins are therefore merged, to ten at most and to so few that this stays near 0.03 from the first figure on, and
    locales with fewer than MIN_BASELINE baseline pairs have no figure. Before MIN_PAIRS recent pairs the figure is
    nan: no alert compares true with it, and it does not pretend to be 0. Locales are never mixed, so a change of their
    shares alone moves nothing, except under `pooled`: requests whose locale the policy does not know.

    Args: half_window, min_pairs: in pairs observed, at most PAIRS_PER_REQUEST of a request.
    """

    def __init__(
        self,
        baseline: Baseline,
        telemetry: Telemetry,
        *,
        half_window: int = HALF_WINDOW,
        min_pairs: int = MIN_PAIRS,
    ) -> None:
        self._gauge = telemetry.drift_psi
        self._min_pairs = min_pairs
        self._lock = Lock()
        self._windows = {
            locale: _Window(reference, half_window)
            for locale, reference in baseline.locales.items()
            if sum(reference.tier) >= MIN_BASELINE
        }
        self._gauge.clear()
        self.update()

    def observe(
        self,
        policy_locale: str,
        score_B: NDArray[np.float64],
        *,
        tier_B: NDArray[np.int64],
        length_B: NDArray[np.int64],
    ) -> None:
        """Count the scored pairs of one request; any thread may call it.

        Args: length_B: tokens of each pair, specials included, cut to the limit.
        """
        window = self._windows.get(policy_locale)
        if window is None or not len(score_B):
            return
        some = np.linspace(0, len(score_B) - 1, min(len(score_B), PAIRS_PER_REQUEST)).astype(np.int64)
        with self._lock:
            window.add({"score": score_B[some], "tier": tier_B[some], "length": length_B[some]})

    def psi(self) -> dict[tuple[str, str], float]:
        """Give the index by what is compared and locale; nan before there are enough pairs."""
        with self._lock:
            return {
                (what, locale): value
                for locale, window in self._windows.items()
                for what, value in window.distances(self._min_pairs).items()
            }

    def update(self) -> None:
        """Set the gauges."""
        for labels, value in self.psi().items():
            self._gauge.labels(*labels).set(value)


def _merged(histogram: Histogram) -> _Bins:
    """Merge neighbouring bins into some of about equal share, as many as the noise of so many pairs allows."""
    count_M = np.asarray(histogram.counts)
    n = int(count_M.sum())
    most = int(_NOISE / (1 / MIN_PAIRS + 1 / max(n, 1)))
    n_bins = 1 + min(max(most, 2), _MOST_BINS - 1)
    middle_M = (np.cumsum(count_M) - count_M / 2) / max(n, 1)
    group_M = np.minimum(middle_M * n_bins, n_bins - 1).astype(np.int64)
    starts = [0, *(i for i, (a, b) in enumerate(pairwise(group_M.tolist()), start=1) if a != b)]
    return _Bins(np.asarray(histogram.edges)[starts[1:]], np.add.reduceat(count_M, starts))
