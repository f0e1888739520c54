"""Simulated traffic with a known lift, to show what the analysis can and cannot promise.

Suffixes: U users, N rows (user × day with at least one impression), C clicks.

Users differ for good: their activity (log-normal), click rate, relevance and value of a click (log-normal) stay the
same on every day, before and during the experiment, and click rate falls with activity. Revenue is a sum of log-normal
prices: heavy-tailed. The treatment multiplies the click probability and the relevance of each impression by 1 + lift,
so the lifts of CTR, RPM and RS are exactly that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relevance.errors import InputError
from training.ab.events import PRE, Events

Floats = NDArray[np.float64]
VARIANTS = ("control", "treatment")
_DEVICES = ("desktop", "phone")
_FIRST_DAY = date(2026, 1, 1)
_MOST_CLICKS = 0.45
"""Cap of a click probability, so that no lift below +1 can push it over 1."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is simulated.

    Args: users: of each arm; days: of the experiment, and as many before it; lift: relative, of the treatment;
        activity, activity_sd: mean impressions a user and day, and the standard deviation of its logarithm; click_rate:
        of a typical user; price_sd, value_sd: of the logarithm of a price, within and between users; keep: chance that
        a user of the treatment is recorded, below 1 for a broken experiment.
    """

    users: int = 2000
    days: int = 14
    lift: float = 0.0
    activity: float = 3.0
    activity_sd: float = 1.0
    click_rate: float = 0.05
    price_sd: float = 0.8
    value_sd: float = 0.6
    keep: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated.

        Raises: InputError: naming the value.
        """
        if self.users < 1 or self.days < 1:
            raise InputError(f"expected at least 1 user and 1 day, found {self.users} and {self.days}")
        if not -1 < self.lift < 1:
            raise InputError(f"expected a lift between -1 and 1, found {self.lift:g}")


def simulate(traffic: Traffic, seed: int) -> Events:
    """Draw one experiment.

    Returns: events with revenue, clicks, relevant impressions, a device segment and each user's totals of the period
        before; users without an impression in the experiment are not there.
    """
    rng = np.random.default_rng(seed)
    n_users = 2 * traffic.users
    trait = rng.normal(size=(4, n_users))
    rate_U = traffic.activity * np.exp(traffic.activity_sd * trait[0] - traffic.activity_sd**2 / 2)
    click_U = np.minimum(_MOST_CLICKS, traffic.click_rate * np.exp(0.5 * trait[1] - 0.2 * trait[0]))
    relevance_U = 0.3 + 0.15 / (1 + np.exp(-trait[2]))
    value_U = np.exp(traffic.value_sd * trait[3])
    treated_U = np.arange(n_users) >= traffic.users
    factor_U = np.where(treated_U, 1 + traffic.lift, 1.0)
    before = _totals(rng, rate_U * traffic.days, click_U, relevance_U, value_U, traffic.price_sd)
    user_N, day_N = (of.ravel() for of in np.divmod(np.arange(n_users * traffic.days), traffic.days))
    columns = _totals(
        rng,
        rate_U[user_N],
        (click_U * factor_U)[user_N],
        (relevance_U * factor_U)[user_N],
        value_U[user_N],
        traffic.price_sd,
    )
    recorded_U = ~treated_U | (rng.random(n_users) < traffic.keep)
    rows = (columns["impressions"] > 0) & recorded_U[user_N]
    seen, user_N = np.unique(user_N[rows], return_inverse=True)
    device_U = np.array(_DEVICES)[(rng.random(n_users) < 0.6).astype(int)]
    return Events(
        user_N=user_N,
        day_N=day_N[rows],
        values={name: of[rows] for name, of in columns.items()},
        segments={"device": device_U[seen][user_N]},
        variant_U=treated_U[seen].astype(np.int64),
        variants=VARIANTS,
        pre={name: of[seen] for name, of in before.items()},
        days=tuple((_FIRST_DAY + timedelta(days=day)).isoformat() for day in range(traffic.days)),
    )


def write_events(path: Path, events: Events) -> None:
    """Write an events file that `read_events` reads back equal, users named by their number.

    Raises: InputError: if the file's ending is not .parquet.
    """
    if path.suffix != ".parquet":
        raise InputError(f"{path}: expected a .parquet file")
    path.parent.mkdir(parents=True, exist_ok=True)
    user_N = events.user_N
    width = len(str(len(events.variant_U)))
    columns = {
        "user_id": np.char.add("u", np.char.zfill(user_N.astype(np.str_), width)),
        "variant": np.array(events.variants)[events.variant_U[user_N]],
        "day": np.array(events.days)[events.day_N],
        **events.segments,
        **events.values,
        **{PRE + name: of[user_N] for name, of in events.pre.items()},
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _totals(
    rng: np.random.Generator, rate: Floats, click: Floats, relevance: Floats, value: Floats, price_sd: float
) -> dict[str, Floats]:
    """Draw the totals of units with these impression rates, click chances, relevances and values of a click."""
    impressions = rng.poisson(rate)
    clicks = rng.binomial(impressions, click)
    unit_C = np.repeat(np.arange(len(rate)), clicks)
    price_C = value[unit_C] * rng.lognormal(0.0, price_sd, len(unit_C))
    relevant = rng.binomial(impressions, relevance)
    return {
        "impressions": impressions.astype(np.float64),
        "revenue": np.bincount(unit_C, weights=price_C, minlength=len(rate)).astype(np.float64),
        "clicks": clicks.astype(np.float64),
        "relevant_impressions": relevant.astype(np.float64),
    }
