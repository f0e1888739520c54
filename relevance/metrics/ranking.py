"""Ranking measures over one query's candidates, and their mean over queries. Suffix: N candidates.

Ties in the score are broken by item id, ascending, so that a figure does not depend on row order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Strings = Sequence[str] | NDArray[np.str_]


def order(score_N: Floats, item_ids: Strings) -> NDArray[np.int64]:
    """Give the ranking: indices by score, highest first, ties by item id ascending."""
    return np.lexsort((np.asarray(item_ids), -np.asarray(score_N, dtype=np.float64)))


def ndcg(gain_N: Floats, score_N: Floats, item_ids: Strings, k: int | None = None) -> float:
    """Give nDCG at k with linear gains and log2 discounts (ir_measures' nDCG with a gain map); nan without any gain.

    Args: gain_N: gains ≥ 0 of the labels; k: cut-off, None for all candidates.
    """
    gain_N = np.asarray(gain_N, dtype=np.float64)
    discount_N = 1.0 / np.log2(np.arange(2, len(gain_N) + 2))
    if k is not None:
        discount_N = np.where(np.arange(len(gain_N)) < k, discount_N, 0.0)
    ideal = float(np.sort(gain_N)[::-1] @ discount_N)
    if ideal <= 0:
        return float("nan")
    # The two sums add the same terms in different orders, so a perfect ranking may exceed 1 by a rounding error.
    return min(1.0, float(gain_N[order(score_N, item_ids)] @ discount_N) / ideal)


def average_precision(positive_N: NDArray[np.bool_], score_N: Floats, item_ids: Strings) -> float:
    """Give average precision over all candidates; nan without a positive one."""
    ranked = np.asarray(positive_N, dtype=bool)[order(score_N, item_ids)]
    if not ranked.any():
        return float("nan")
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def by_query(query_ids: Strings, measure: Callable[[NDArray[np.int64]], float]) -> dict[str, float]:
    """Give a measure of each query from the indices of its rows, queries in order of appearance; nan is left out."""
    rows: dict[str, list[int]] = {}
    for i, query_id in enumerate(query_ids):
        rows.setdefault(str(query_id), []).append(i)
    values = {query_id: measure(np.asarray(indices)) for query_id, indices in rows.items()}
    return {query_id: value for query_id, value in values.items() if not np.isnan(value)}
