"""Latency as a guardrail: a quantile of rows with a bootstrap of whole users.

Suffixes: N rows of an arm, U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relevance.metrics.intervals import Interval
from training.ab.events import LATENCY, Events

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
QUANTILE = 0.99


@dataclass(frozen=True, slots=True)
class LatencyChange:
    """A latency quantile in both arms and the difference of treatment and control, in milliseconds."""

    control: Interval
    treatment: Interval
    difference: Interval


def latency_change(
    events: Events, arms: tuple[int, int], *, confidence: float = 0.95, draws: int = 500, seed: int = 0
) -> LatencyChange:
    """Compare p99 latency of two arms.

    Each draw gives every user a Poisson(1) weight, which is the bootstrap of users for large U (Chamandy et al., Google
    technical report 2012), and takes the weighted quantile of the rows.

    Args: arms: control and treatment, each with rows; the events have the latency column.
    """
    rng = np.random.default_rng(seed)
    drawn, found = [], []
    for arm in arms:
        rows = events.variant_U[events.user_N] == arm
        values_N, user_N = events.values[LATENCY][rows], events.user_N[rows]
        order = np.argsort(values_N, kind="stable")
        values_N = values_N[order]
        _, user_N = np.unique(user_N[order], return_inverse=True)
        n_users = int(user_N.max()) + 1
        found.append(_weighted_quantile(values_N, np.ones(len(values_N))))
        weights = (rng.poisson(1.0, n_users)[user_N].astype(np.float64) for _ in range(draws))
        drawn.append(np.array([_weighted_quantile(values_N, w_N) for w_N in weights]))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    control, treatment, difference = (
        Interval(value, *(float(end) for end in np.nanquantile(draws_of, tails)))
        for value, draws_of in (
            (found[0], drawn[0]),
            (found[1], drawn[1]),
            (found[1] - found[0], drawn[1] - drawn[0]),
        )
    )
    return LatencyChange(control, treatment, difference)


def _weighted_quantile(sorted_N: Floats, weight_N: Floats) -> float:
    """Give the least value that at least the quantile's share of the weight does not exceed; nan without weight."""
    reached = np.cumsum(weight_N)
    if reached[-1] == 0:
        return float("nan")
    return float(sorted_N[np.searchsorted(reached, QUANTILE * reached[-1])])
