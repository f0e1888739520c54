"""How far two bundles agree on requests that both scored. Suffixes: B pairs, T tiers."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from relevance.labels import N_TIERS
from relevance.metrics.agreement import quadratic_weighted_kappa, share_interval, spearman
from relevance.metrics.classification import confusion_matrix

WINDOW_REQUESTS = 500


@dataclass(frozen=True, slots=True)
class Judged:
    """What one bundle said of the pairs that both scored."""

    score_B: NDArray[np.float64]
    tier_B: NDArray[np.int64]
    kept_B: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One request as judged by both bundles.

    Args: locale: the primary's policy locale; tier_TT: pairs by primary (rows) and shadow tier; keep_22: pairs by
        filtered (0) or kept (1); rank_correlation: Spearman of the scores, nan if the primary gave fewer than 3
        distinct ones, 0 if the shadow's are all equal; session_s, padded_tokens: what the shadow's session took.
    """

    locale: str
    tier_TT: NDArray[np.int64]
    keep_22: NDArray[np.int64]
    rank_correlation: float
    session_s: float
    padded_tokens: int

    @property
    def n_pairs(self) -> int:
        """Pairs compared."""
        return int(self.tier_TT.sum())

    @property
    def n_flips(self) -> int:
        """Pairs whose tier differs."""
        return int(self.tier_TT.sum() - np.trace(self.tier_TT))


def compare(
    primary: Judged, shadow: Judged, *, locale: str, session_s: float = 0.0, padded_tokens: int = 0
) -> Comparison:
    """Compare what two bundles said of the same pairs, in the same order."""
    correlation = math.nan
    if len(np.unique(primary.score_B)) >= 3:
        correlation = spearman(primary.score_B, shadow.score_B) if np.ptp(shadow.score_B) else 0.0
    return Comparison(
        locale=locale,
        tier_TT=confusion_matrix(primary.tier_B, shadow.tier_B, N_TIERS),
        keep_22=confusion_matrix(primary.kept_B.astype(np.int64), shadow.kept_B.astype(np.int64), 2),
        rank_correlation=correlation,
        session_s=session_s,
        padded_tokens=padded_tokens,
    )


class Agreement:
    """Agreement of two bundles over the last requests compared; any thread may call any method.

    Args: window: requests remembered.
    """

    def __init__(self, window: int = WINDOW_REQUESTS) -> None:
        self._recent: deque[Comparison] = deque(maxlen=window)
        self._tier_TT = np.zeros((N_TIERS, N_TIERS), dtype=np.int64)
        self._keep_22 = np.zeros((2, 2), dtype=np.int64)
        self._lock = Lock()

    def add(self, comparison: Comparison) -> None:
        """Count one request; the oldest of a full window is forgotten."""
        with self._lock:
            if len(self._recent) == self._recent.maxlen:
                self._tier_TT -= self._recent[0].tier_TT
                self._keep_22 -= self._recent[0].keep_22
            self._recent.append(comparison)
            self._tier_TT += comparison.tier_TT
            self._keep_22 += comparison.keep_22

    def kappa(self) -> float:
        """Give the quadratically weighted kappa of the tiers; nan where it is not defined."""
        with self._lock:
            return quadratic_weighted_kappa(self._tier_TT)

    def rank_correlation(self) -> float:
        """Give the mean rank correlation of the requests that have one, else nan."""
        with self._lock:
            known = [r.rank_correlation for r in self._recent if not math.isnan(r.rank_correlation)]
        return sum(known) / len(known) if known else math.nan

    def seconds_per_token(self) -> float:
        """Give the shadow's session seconds a padded token; nan before the first."""
        with self._lock:
            seconds, tokens = sum(r.session_s for r in self._recent), sum(r.padded_tokens for r in self._recent)
        return seconds / tokens if tokens else math.nan

    def report(self) -> dict[str, object]:
        """Give all figures of the window as JSON types; None where one is not defined."""
        with self._lock:
            recent, keep_22 = list(self._recent), self._keep_22.copy()
        pairs = int(keep_22.sum())
        locales = sorted({r.locale for r in recent})
        return {
            "requests": len(recent),
            "pairs": pairs,
            "flip_rate": _flip_rate(recent),
            "flip_rate_by_locale": {name: _flip_rate([r for r in recent if r.locale == name]) for name in locales},
            "tier_kappa": figure(self.kappa()),
            "rank_correlation": figure(self.rank_correlation()),
            "keep_agreement": int(np.trace(keep_22)) / pairs if pairs else None,
            "filtered_by_primary_only": int(keep_22[0, 1]),
            "filtered_by_shadow_only": int(keep_22[1, 0]),
        }


def _flip_rate(recent: list[Comparison]) -> dict[str, float | None]:
    rate = share_interval(np.array([r.n_flips for r in recent]), np.array([r.n_pairs for r in recent]))
    return {"value": figure(rate.value), "low": rate.low, "high": rate.high}


def figure(value: float) -> float | None:
    """Give a figure as JSON knows it: None for nan."""
    return None if math.isnan(value) else value
