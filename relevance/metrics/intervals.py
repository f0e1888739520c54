"""Confidence intervals by resampling whole queries, because pairs of one query are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Strings = Sequence[str] | NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the ends of its interval."""

    value: float
    low: float
    high: float


def with_rare_events(interval: Interval, n_queries: int, *, confidence: float = 0.95) -> Interval:
    """Widen the interval of a share that is 0, or 1, in all draws, where percentiles of a bootstrap say nothing.

    The open end is that of Clopper and Pearson (Biometrika, 1934) for no event in so many independent queries.

    Args: n_queries: those that could have had the event.
    """
    if interval.value not in (0.0, 1.0) or interval.low != interval.high or n_queries < 1:
        return interval
    reach = 1.0 - float(((1.0 - confidence) / 2) ** (1.0 / n_queries))
    return Interval(0.0, 0.0, reach) if interval.value == 0.0 else Interval(1.0, 1.0 - reach, 1.0)


def query_bootstrap(
    query_ids: Strings,
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
    many = query_bootstrap_many(
        query_ids, lambda rows: {"": measure(rows)}, confidence=confidence, draws=draws, seed=seed
    )
    return many[""]


def query_bootstrap_many(
    query_ids: Strings,
    measures: Callable[[NDArray[np.int64]], dict[str, float]],
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Give percentile intervals of several measures from the same draws of queries.

    Args: query_ids: one of each pair; measures: row indices → figures by name, the same names on every draw; a
        figure's draws where it is nan are left out.
    Returns: by name, as `query_bootstrap`.
    """
    _, inverse = np.unique(np.asarray(query_ids), return_inverse=True)
    by_query = np.argsort(inverse, kind="stable")
    groups = np.split(by_query, np.cumsum(np.bincount(inverse))[:-1])
    rng = np.random.default_rng(seed)
    values = measures(np.arange(len(inverse)))
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(draws):
        chosen = rng.integers(0, len(groups), len(groups))
        for name, figure in measures(np.concatenate([groups[g] for g in chosen])).items():
            drawn[name].append(figure)
    tail = (1 - confidence) / 2
    intervals = {}
    for name, value in values.items():
        known = np.asarray(drawn[name])[~np.isnan(drawn[name])]
        low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (float("nan"), float("nan"))
        intervals[name] = Interval(float(value), float(low), float(high))
    return intervals
