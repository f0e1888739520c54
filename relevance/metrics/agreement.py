"""How far two scorers of the same pairs agree. Suffixes: N pairs, T tiers, Q queries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relevance.metrics.intervals import Interval

_Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def quadratic_weighted_kappa(count_TT: NDArray[np.integer]) -> float:
    """Give Cohen's kappa with weights (i - j)², the chance-corrected agreement on an ordered scale.

    Args: count_TT: pairs by the tier of one scorer (rows) and of the other (columns).
    Returns: 1 for equal tiers, 0 for chance; nan without pairs, and where both give one and the same tier to all.
    """
    count_TT = np.asarray(count_TT, dtype=np.float64)
    tier_T = np.arange(len(count_TT))
    weight_TT = (tier_T[:, None] - tier_T) ** 2
    by_chance = float(count_TT.sum(axis=1) @ weight_TT @ count_TT.sum(axis=0))
    return 1.0 - float((weight_TT * count_TT).sum() * count_TT.sum()) / by_chance if by_chance else float("nan")


def spearman(a_N: NDArray[np.floating], b_N: NDArray[np.floating]) -> float:
    """Give Spearman's rank correlation, tied values sharing their mean rank; nan where either side is constant."""
    a_N, b_N = (_centred_ranks(np.asarray(values_N)) for values_N in (a_N, b_N))
    spread = float(np.sqrt((a_N @ a_N) * (b_N @ b_N)))
    return float(a_N @ b_N) / spread if spread else float("nan")


def share_interval(hit_Q: NDArray[np.integer], total_Q: NDArray[np.integer]) -> Interval:
    """Give the share of pairs that are hits with its 95 % Wilson interval, whole queries being the independent draws.

    Pairs of one query are alike, so the interval is that of as many independent pairs as would vary like these queries
    (linearised variance of a ratio), and of no more than there are; without any hit, or any miss, of all of them.

    Args: hit_Q, total_Q: hits and pairs of each query.
    Returns: the ends are 0 and 1 below two queries; the share is nan without pairs.
    """
    n, n_queries = float(np.sum(total_Q)), len(total_Q)
    share = float(np.sum(hit_Q)) / n if n else float("nan")
    if n_queries < 2 or not n:
        return Interval(share, 0.0, 1.0)
    residual_Q = np.asarray(hit_Q) - share * np.asarray(total_Q)
    variance = float(residual_Q @ residual_Q) / n**2 * n_queries / (n_queries - 1)
    n_effective = min(n, share * (1 - share) / variance) if variance else n
    shrink = 1 + _Z**2 / n_effective
    centre = (share + _Z**2 / (2 * n_effective)) / shrink
    half = _Z / shrink * float(np.sqrt(share * (1 - share) / n_effective + _Z**2 / (4 * n_effective**2)))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _centred_ranks(values_N: NDArray[np.floating]) -> NDArray[np.float64]:
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks_N: NDArray[np.float64] = mean_rank[inverse_N] - (len(values_N) + 1) / 2
    return ranks_N
