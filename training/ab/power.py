"""How many users a lift needs, what a number of users can show: two equal arms, normal test of the log ratio.

The relative variance is that of one user's linearised ratio over the squared ratio, n·Var(R)/R²; for a plain mean it is
variance / mean². Source: the usual n = 2·v·(z_{1−α/2} + z_{power})² / δ² with δ = log(1 + lift).
"""

from __future__ import annotations

import math

from scipy import stats

from relevance.errors import InputError
from training.ab.estimate import Ratio, normal_quantile


def users_per_arm(relative_variance: float, lift: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Give the users each of two arms needs to find a lift.

    Raises: InputError: if the lift is 0 or at most −1, the variance is not positive, or the power not within
        (1 − confidence, 1).
    """
    if not -1 < lift < math.inf or lift == 0:
        raise InputError(f"expected a finite lift other than 0 and above −1, found {lift:g}")
    if not relative_variance > 0:
        raise InputError(f"expected a positive relative variance, found {relative_variance:g}")
    if not 1 - confidence < power < 1:
        raise InputError(f"expected a power between {1 - confidence:g} and 1, found {power:g}")
    distance = normal_quantile(confidence) + float(stats.norm.ppf(power))
    return math.ceil(2 * relative_variance * (distance / math.log1p(lift)) ** 2)


def power_at(relative_variance: float, lift: float, users: int, *, confidence: float = 0.95) -> float:
    """Give the probability that two arms of this many users each find a lift."""
    shift = abs(math.log1p(lift)) / math.sqrt(2 * relative_variance / users)
    z = normal_quantile(confidence)
    return float(stats.norm.sf(z - shift) + stats.norm.cdf(-z - shift))


def detectable_lift(log_variance: float, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """Give the smallest lift that an estimate of this log variance finds with the given power."""
    return math.expm1((normal_quantile(confidence) + float(stats.norm.ppf(power))) * math.sqrt(log_variance))


def relative_variance_of(ratio: Ratio) -> float:
    """Give one user's relative variance from an arm's estimate."""
    return ratio.users * ratio.relative_variance
