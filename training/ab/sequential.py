"""Always-valid intervals and p-values, for experiments that are looked at before they end.

The mixture sequential probability ratio test with a normal mixture over the log lift: with estimate θ of variance V and
mixture N(0, τ²), Λ = √(V/(V+τ²)) · exp(τ²θ² / (2V(V+τ²))) exceeds 1/α at any look with probability at most α under no
lift, so min(1, 1/Λ) is a p-value whenever one looks, and θ ± √(V(V+τ²)/τ² · log((V+τ²)/(Vα²))) an interval that holds
at all looks together. Source: Johari, Koomen, Pekelis & Walsh, Operations Research 70 (2022), with the variance
estimated it is the asymptotic confidence sequence of Waudby-Smith et al., Annals of Statistics 52 (2024), theorem 2.2
(their tρ² is τ²/V). It is asymptotic: looks with few users are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from training.ab.estimate import Lift, adjusted_ratios, arm_ratio, lift_of
from training.ab.events import Events, user_totals

_LARGEST_LOG = 700.0
FEWEST_USERS = 100
"""A look counts once every arm has this many users."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was known at the end of a day.

    Args: users: of both arms; value, low, high: the lift with its always-valid interval; variance: of the log
        ratio; p: the smallest always-valid p-value so far.
    """

    day: str
    users: int
    value: float
    low: float
    high: float
    variance: float
    p: float


def always_valid(lift: Lift, *, planned_lift: float, confidence: float = 0.95) -> tuple[float, float, float]:
    """Give the ends of a lift's always-valid interval and its p-value.

    Args: planned_lift: fixed before the experiment; log(1 + planned lift) is τ, which makes the interval tightest about
        where a fixed test of that lift would have 80 % power.
    Returns: low, high, p; nan where the lift is, and where so little is known that the upper end is beyond any number.
    """
    if not lift.known or lift.variance == 0:
        return float("nan"), float("nan"), float("nan")
    theta, variance, mixture = math.log1p(lift.value), lift.variance, math.log1p(planned_lift) ** 2
    total = variance + mixture
    log_ratio = 0.5 * math.log(variance / total) + mixture * theta**2 / (2 * variance * total)
    half = math.sqrt(variance * total / mixture * (math.log(total / variance) - 2 * math.log(1 - confidence)))
    if theta + half > _LARGEST_LOG:
        return float("nan"), float("nan"), float("nan")
    return math.expm1(theta - half), math.expm1(theta + half), min(1.0, math.exp(min(0.0, -log_ratio)))


def looks(
    events: Events, numerator: str, *, arms: tuple[int, int], planned_lift: float, confidence: float = 0.95
) -> list[Look]:
    """Look at a metric at the end of every day, with all users and rows so far.

    Args: arms: control and treatment.
    Returns: one look a day from the first on which both arms have `FEWEST_USERS` users; with CUPED where there is
        a past.
    """
    found: list[Look] = []
    smallest = 1.0
    of_arms = np.isin(events.variant_U, arms)[events.user_N]
    for day, name in enumerate(events.days):
        totals = user_totals(events, numerator, of_arms & (events.day_N <= day))
        counts = [int(np.sum(totals.variant_U == arm)) for arm in arms]
        enough = min(counts) >= FEWEST_USERS
        if not enough or min(totals.denominator_U[totals.variant_U == arm].sum() for arm in arms) <= 0:
            continue
        control, treatment = adjusted_ratios(totals, arms) or (arm_ratio(totals, arm) for arm in arms)
        lift = lift_of(treatment, control, confidence=confidence)
        low, high, p = always_valid(lift, planned_lift=planned_lift, confidence=confidence)
        if math.isnan(p):
            continue
        smallest = min(smallest, p)
        found.append(Look(name, sum(counts), lift.value, low, high, lift.variance, smallest))
    return found
