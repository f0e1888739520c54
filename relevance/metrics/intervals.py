"""Confidence intervals by resampling whole queries, because pairs of one query are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the ends of its interval."""

    value: float
    low: float
    high: float


def query_bootstrap(
    query_ids: Sequence[str] | NDArray[np.str_],
    measure: Callable[[NDArray[np.int64]], float],
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Give a percentile interval of any measure by drawing queries with replacement.

    Args: query_ids: one of each pair; measure: row indices (a query drawn twice brings its rows twice) → figure;
        draws where it is nan are left out.
    Returns: the measure on all rows, and the interval's ends; nan ends when every draw is nan.
    """
    _, inverse = np.unique(np.asarray(query_ids), return_inverse=True)
    by_size = np.argsort(inverse, kind="stable")
    groups = np.split(by_size, np.cumsum(np.bincount(inverse))[:-1])
    rng = np.random.default_rng(seed)
    values = np.empty(draws)
    for d in range(draws):
        chosen = rng.integers(0, len(groups), len(groups))
        values[d] = measure(np.concatenate([groups[g] for g in chosen]))
    values = values[~np.isnan(values)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (float("nan"), float("nan"))
    return Interval(float(measure(np.arange(len(inverse)))), float(low), float(high))
