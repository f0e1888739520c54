"""Ratio metrics by the delta method with users as the unit, relative lifts, CUPED, and the tests around them.

Suffixes: U users. A metric is a ratio of totals R = ΣN/ΣD over users; users are independent, rows of one user are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from relevance.errors import InputError
from training.ab.events import UserTotals

Floats = NDArray[np.float64]
SRM_ALARM = 0.001
"""Below this p a sample ratio mismatch is taken for a broken experiment (Fabijan et al., KDD 2019)."""
_FEWEST_USERS = 2
_ROUNDING = 1e-24
"""A log ratio's variance up to which nothing but rounding differs between users."""
_UNKNOWN = 100.0
"""A log ratio's variance from which a ratio is as good as 0: its lift would lie anywhere between −100 % and 10⁸."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """An estimate of one arm's ratio.

    Args: value: the ratio, adjusted or not; variance: of the estimate; users: how many it comes from.
    """

    value: float
    variance: float
    users: int

    @property
    def relative_variance(self) -> float:
        """Variance of the estimate's logarithm, by the delta method; nan for a ratio that is not positive."""
        return self.variance / self.value**2 if self.value > 0 else float("nan")

    def interval(self, confidence: float) -> tuple[float, float]:
        """Give the ends of the normal interval."""
        half = normal_quantile(confidence) * self.variance**0.5
        return self.value - half, self.value + half


@dataclass(frozen=True, slots=True)
class Lift:
    """A treatment's ratio over the control's, less one.

    Args: value, low, high: relative (0.01 is +1 %); variance: of the log ratio; p: two-sided. nan where either ratio is
        not clearly above 0.
    """

    value: float
    low: float
    high: float
    variance: float
    p: float

    @property
    def known(self) -> bool:
        """Whether there is a lift at all."""
        return not math.isnan(self.variance)


def normal_quantile(confidence: float) -> float:
    """Give z such that a standard normal lies within ±z with this probability."""
    return float(stats.norm.ppf((1 + confidence) / 2))


def linearised(numerator_U: Floats, denominator_U: Floats, ratio: float, mean_denominator: float) -> Floats:
    """Give each user's contribution to the error of a ratio, (N − R·D) / mean D.

    Source: the delta method for ratios of sums (Deng, Knoblich & Lu, KDD 2018, §3); its variance over n is
    (σ_N² − 2Rσ_ND + R²σ_D²) / (n μ_D²).
    """
    return (numerator_U - ratio * denominator_U) / mean_denominator


def arm_ratio(totals: UserTotals, arm: int) -> Ratio:
    """Give one arm's ratio with its user-clustered variance.

    Raises: InputError: if the arm has fewer than two users or a denominator of 0.
    """
    value, linear_U = _linear(totals, arm)
    return Ratio(value, float(linear_U.var(ddof=1)) / len(linear_U), len(linear_U))


def adjusted_ratios(totals: UserTotals, arms: Sequence[int]) -> tuple[Ratio, ...] | None:
    """Give the arms' ratios adjusted by the ratio of the period before: CUPED on linearised users.

    The covariate is the linearised ratio before the experiment, about the ratio of all arms together, so that its mean
    is alike in every arm up to chance; a user without a past has 0. One slope θ = Cov/Var from all arms, within arms.

    Returns: None where there is no past, or all users' pasts are alike, or a ratio is not positive, be it as measured
        or as adjusted: a past far from the mean can push a small ratio below 0, which no lift can be had of.
    Raises: InputError: as `arm_ratio`.
    Source: Deng et al., WSDM 2013, §3 and appendix B (CUPED for ratio metrics by the delta method).
    """
    if totals.pre_numerator_U is None or totals.pre_denominator_U is None:
        return None
    numerator_U, denominator_U = totals.pre_numerator_U, totals.pre_denominator_U
    if denominator_U.sum() <= 0:
        return None
    ratio = float(numerator_U.sum() / denominator_U.sum())
    past_U = linearised(numerator_U, denominator_U, ratio, float(denominator_U.mean()))
    pasts = [past_U[totals.variant_U == arm] for arm in arms]
    plain = [_linear(totals, arm) for arm in arms]
    spread = sum(float(np.sum((past - past.mean()) ** 2)) for past in pasts)
    if spread <= _ROUNDING * ratio**2 * len(past_U):
        return None
    slope = (
        sum(
            float(past @ linear) - len(past) * past.mean() * linear.mean()
            for past, (_, linear) in zip(pasts, plain, strict=True)
        )
        / spread
    )
    adjusted = tuple(
        Ratio(value - float(slope * past.mean()), float((linear - slope * past).var(ddof=1)) / len(past), len(past))
        for past, (value, linear) in zip(pasts, plain, strict=True)
    )
    values = [one.value for one in adjusted] + [value for value, _ in plain]
    return adjusted if min(values) > 0 else None


def lift_of(treatment: Ratio, control: Ratio, *, confidence: float = 0.95) -> Lift:
    """Give the relative lift with a delta-method interval on the logarithm: exp(log R_t/R_c ± z·se) − 1.

    Returns: nan throughout where a ratio is not positive, or so near 0 that its relative error has no bounds; a
        variance of 0 and p of 0 or 1 where no user's ratio differs from the arm's.
    """
    variance = treatment.relative_variance + control.relative_variance
    if not variance < _UNKNOWN:
        return Lift(*[float("nan")] * 5)
    log_lift = math.log(treatment.value) - math.log(control.value)
    if variance <= _ROUNDING:
        value = math.expm1(log_lift)
        return Lift(value, value, value, 0.0, float(abs(log_lift) <= _ROUNDING**0.5))
    half = normal_quantile(confidence) * variance**0.5
    p = float(2 * stats.norm.sf(abs(log_lift) / variance**0.5))
    value, low, high = (float(np.expm1(log_lift + shift)) for shift in (0.0, -half, half))
    return Lift(value, low, high, variance, p)


def sample_ratio_p(users: Sequence[int], shares: Sequence[float]) -> float:
    """Give the p-value of the χ² test that users fell into the arms in the planned shares.

    Raises: InputError: if a share is not positive, or there are not as many as arms.
    """
    if len(users) != len(shares) or min(shares) <= 0:
        raise InputError(f"expected {len(users)} positive shares, found {list(shares)}")
    expected = np.asarray(shares) / sum(shares) * sum(users)
    return float(stats.chisquare(users, expected).pvalue)


def _linear(totals: UserTotals, arm: int) -> tuple[float, Floats]:
    """Give an arm's ratio and its linearised users."""
    of_arm = totals.variant_U == arm
    numerator_U, denominator_U = totals.numerator_U[of_arm], totals.denominator_U[of_arm]
    if len(numerator_U) < _FEWEST_USERS or denominator_U.sum() <= 0:
        raise InputError(
            f"expected at least {_FEWEST_USERS} users and a denominator above 0 in each arm, found "
            f"{len(numerator_U)} users and a denominator of {denominator_U.sum():g}"
        )
    value = float(numerator_U.sum() / denominator_U.sum())
    return value, linearised(numerator_U, denominator_U, value, float(denominator_U.mean()))
