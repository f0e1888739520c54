"""How many replicas a plan needs: the smallest number whose simulation meets every objective.

A fleet is simulated by thinning. A Poisson stream of rate λ that is split at random over n replicas is n independent
Poisson streams of rate λ/n, so one group of g replicas at rate λ·g/n stands for all of them: exactly where groups have
a balancer each and calls are spread over groups at random, as from many callers; where one balancer chooses among all
n, the group waits longer than the fleet, by an amount that vanishes with g. A trace is thinned the same way, call by
call, which keeps its bursts. What is left of error is measured: with other random numbers, and with a group twice as
large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from relevance.errors import SettingsError
from service.capacity_replica import ReplicaSpec
from service.capacity_simulation import OUTCOMES, Answered, Balancer, Demand, simulate

PERCENTILES = (50, 95, 99)
LEAST_CALLS = 100
_IDLE = 0.001
"""Of what a replica can do: a load at which no call meets another."""
_WARM_SHARE = 0.1
"""Of the calls that come first, so many are not counted: the simulation begins idle."""
_RESOLUTION = 500
"""Answers above this many replicas are given to within one part of it, which is less than what another seed changes."""


class Objective(BaseModel):
    """A percentile of the answered calls that must not take longer.

    Args: items: of the calls meant, None for all calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    percentile: float = Field(gt=0, lt=100)
    ms: PositiveFloat
    items: PositiveInt | None = None


class Plan(BaseModel):
    """Everything that decides how many replicas are needed; docs/operations.md says where each number comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: tuple[PositiveFloat, ...] = Field(min_length=1)
    tokens_per_s: PositiveFloat
    pair_tokens: PositiveInt
    pair_spread: float = Field(default=0, ge=0, le=2)
    mix: Mapping[PositiveInt, PositiveFloat] = Field(default={50: 0.80, 200: 0.15, 1000: 0.05}, min_length=1)
    slo: tuple[Objective, ...] = Field(min_length=1)
    most_unserved: float = Field(default=0.001, ge=0, lt=1)
    deadline_ms: PositiveFloat = 30_000
    batch_fixed_ms: float = Field(default=0, ge=0)
    engines: PositiveInt = 1
    batch_ms: PositiveFloat = 40
    prefetch: bool = False
    call_ms: float = Field(default=0, ge=0)
    pair_us: float = Field(default=0, ge=0)
    cached: float = Field(default=0, ge=0, lt=1)
    zones: PositiveInt = 3
    cost_per_hour: PositiveFloat | None = None
    balancer: Balancer = "least"
    group: PositiveInt = 8
    calls: int = Field(default=10_000, ge=LEAST_CALLS)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        unknown = [objective.items for objective in self.slo if objective.items not in {None, *self.mix}]
        if unknown:
            raise ValueError(f"slo: expected sizes of the mix {sorted(self.mix)}, found {unknown}")
        if self.batch_fixed_ms >= self.batch_ms:
            raise ValueError(f"batch_fixed_ms: expected less than batch_ms {self.batch_ms:g}")
        return self

    @property
    def replica(self) -> ReplicaSpec:
        """What one replica can do."""
        return ReplicaSpec(
            tokens_per_s=self.tokens_per_s,
            fixed_s=self.batch_fixed_ms / 1000,
            engines=self.engines,
            batch_s=self.batch_ms / 1000,
            prefetch=self.prefetch,
            call_s=self.call_ms / 1000,
            pair_s=self.pair_us / 1e6,
        )

    @property
    def mean_tokens(self) -> float:
        """Tokens of a call that have to be computed, on average."""
        items = sum(size * share for size, share in self.mix.items()) / sum(self.mix.values())
        return items * self.pair_tokens * (1 - self.cached)


def plan_of(values: Mapping[str, Any]) -> Plan:
    """Check what a TOML file and the options gave.

    Raises: SettingsError: naming every value that is missing or wrong.
    """
    try:
        return Plan.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'plan'}: {e['msg']}"
            + ("" if e["type"] == "missing" or not e["loc"] else f", found {e['input']!r}")
            for e in error.errors()
        )
        raise SettingsError(f"capacity plan (option or TOML key): {faults}") from error


@dataclass(frozen=True, slots=True)
class Load:
    """How a number of replicas does at a rate.

    Args: latency_ms: size → percentile → milliseconds of answered calls, size 0 is all calls, NaN where none was
        answered; shares: of calls by outcome; unmet: what is missed, in words; strain: the largest latency over its
        objective; scored_per_call: pairs.
    """

    replicas: int
    utilisation: float
    latency_ms: dict[int, dict[int, float]]
    shares: dict[str, float]
    unmet: tuple[str, ...]
    strain: float
    scored_per_call: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What one rate needs.

    Args: needed: replicas that meet the objectives; replicas: with a zone in reserve; normal: all of them up; worst:
        one zone lost; too_few: one step fewer than needed, None if needed is 1; cost_per_million: scored pairs, None
        without a price; other_seed, twice_the_group: relative change of the worst case's strain.
    """

    rate: float
    needed: int
    replicas: int
    normal: Load
    worst: Load
    too_few: Load | None
    cost_per_million: float | None
    other_seed: float
    twice_the_group: float


class Planner:
    """Searches the smallest number of replicas for each rate of a plan.

    Args: trace_s: arrival times of recorded calls, None for a Poisson stream.
    Raises: SettingsError: if the objectives cannot be met by any number, or a trace has fewer calls than a rate asks.
    """

    def __init__(self, plan: Plan, trace_s: NDArray[np.float64] | None = None) -> None:
        self.plan = plan
        self._trace_s = trace_s
        self.load = lru_cache(maxsize=256)(self._load)
        idle_rate = _IDLE * plan.tokens_per_s / plan.mean_tokens
        rng = np.random.default_rng(plan.seed)
        idle = self._summary(self._demand(poisson(plan.calls, idle_rate, rng), rng), rng, replicas=1, stands_for=1)
        if idle.unmet:
            raise SettingsError(
                f"capacity plan: expected objectives that an idle replica meets, found {', '.join(idle.unmet)}"
            )

    def answer(self, rate: float, *, guess: int | None = None) -> Answer:
        """Give what a rate needs; guess: where to begin to look."""
        plan = self.plan
        needed, too_few = self._search(rate, guess or math.ceil(rate * plan.mean_tokens / plan.tokens_per_s / 0.7))
        replicas = with_spare_zone(needed, plan.zones)
        worst = self.load(rate, replicas - lost(replicas, plan.zones))
        normal = self.load(rate, replicas)
        other = self.load(rate, worst.replicas, seed=plan.seed + 1)
        twice = self.load(rate, worst.replicas, group=2 * plan.group)
        return Answer(
            rate=rate,
            needed=needed,
            replicas=replicas,
            normal=normal,
            worst=worst,
            too_few=too_few,
            cost_per_million=self._cost(rate, replicas, normal),
            other_seed=other.strain / worst.strain - 1,
            twice_the_group=twice.strain / worst.strain - 1,
        )

    def _search(self, rate: float, guess: int) -> tuple[int, Load | None]:
        """Give the smallest number that does, and how one step fewer fails."""
        step = max(1, guess // 50)
        low, high = 0, max(1, guess)
        if self.load(rate, high).unmet:
            while self.load(rate, high).unmet:
                low, high, step = high, high + step, 2 * step
        else:
            while high > 1:
                fewer = max(1, high - step)
                if self.load(rate, fewer).unmet:
                    low = fewer
                    break
                high, step = fewer, 2 * step
        while high - low > max(1, high // _RESOLUTION):
            middle = (low + high) // 2
            if self.load(rate, middle).unmet:
                low = middle
            else:
                high = middle
        return high, self.load(rate, low) if low else None

    def _load(self, rate: float, replicas: int, *, seed: int | None = None, group: int | None = None) -> Load:
        group = min(replicas, group or self.plan.group)
        rng = np.random.default_rng(self.plan.seed if seed is None else seed)
        of_group = rate * group / replicas
        if self._trace_s is None:
            at_R = poisson(self.plan.calls, of_group, rng)
        else:
            at_R = thinned(self._trace_s, of_group, rng)
        return self._summary(self._demand(at_R, rng), rng, replicas=group, stands_for=replicas)

    def _demand(self, at_R: NDArray[np.float64], rng: np.random.Generator) -> Demand:
        """Give calls of the mix; the same random numbers whatever the rate, so that rates can be compared."""
        plan, n = self.plan, len(at_R)
        shares = np.asarray(list(plan.mix.values()), dtype=np.float64)
        items_R = rng.choice(np.asarray(list(plan.mix), dtype=np.int64), n, p=shares / shares.sum())
        rows = rng.binomial(items_R, 1 - plan.cached).tolist()
        lengths = [lengths_of(count, plan.pair_tokens, plan.pair_spread, rng) for count in rows]
        return Demand(at_R, items_R, lengths, plan.deadline_ms / 1000)

    def _summary(self, demand: Demand, rng: np.random.Generator, *, replicas: int, stands_for: int) -> Load:
        plan = self.plan
        seed = int(rng.integers(2**32))
        answered = simulate(demand, plan.replica, replicas=replicas, balancer=plan.balancer, seed=seed)
        counted = slice(int(_WARM_SHARE * len(demand.at_R)), None)
        latency_ms_R, items_R = 1000 * answered.latency_s_R[counted], demand.items_R[counted]
        outcome_R = answered.outcome_R[counted]
        by_size = {size: latency_ms_R[items_R == size] for size in plan.mix}
        unmet, strain = self._judge(outcome_R, latency_ms_R, by_size)
        return Load(
            replicas=stands_for,
            utilisation=utilisation(answered, replicas * plan.engines),
            latency_ms={
                size: {q: percentile(values, q) for q in PERCENTILES}
                for size, values in ({0: latency_ms_R} | by_size).items()
            },
            shares={name: float((outcome_R == code).mean()) for code, name in enumerate(OUTCOMES)},
            unmet=unmet,
            strain=strain,
            scored_per_call=float(answered.scored_R[counted].mean()),
        )

    def _judge(
        self, outcome_R: NDArray[np.int8], latency_ms_R: NDArray[np.float64], by_size: dict[int, NDArray[np.float64]]
    ) -> tuple[tuple[str, ...], float]:
        """Give what is missed, in words, and the strain."""
        unmet, strains = [], []
        for objective in self.plan.slo:
            values = latency_ms_R if objective.items is None else by_size[objective.items]
            found = percentile(values, objective.percentile)
            strains.append(found / objective.ms)
            if not found <= objective.ms:
                whose = "all calls" if objective.items is None else f"calls of {objective.items}"
                unmet.append(f"p{objective.percentile:g} of {whose} {found:.4g} ms > {objective.ms:g} ms")
        unserved = float((outcome_R != OUTCOMES.index("complete")).mean())
        if unserved > self.plan.most_unserved:
            unmet.append(f"unserved share {unserved:.3g} > {self.plan.most_unserved:g}")
        return tuple(unmet), max(strains)

    def _cost(self, rate: float, replicas: int, load: Load) -> float | None:
        if self.plan.cost_per_hour is None:
            return None
        return replicas * self.plan.cost_per_hour / 3600 / (rate * load.scored_per_call) * 1e6


def utilisation(answered: Answered, engines: int) -> float:
    """Give the share of the time in which engines ran batches; at most a little over 1, for the last end after it."""
    return answered.busy_s / (engines * answered.span_s) if answered.span_s else 0.0


def percentile(values: NDArray[np.float64], q: float) -> float:
    """Give a percentile of what is a number, NaN of nothing."""
    there = values[~np.isnan(values)]
    return float(np.percentile(there, q)) if len(there) else math.nan


def lost(replicas: int, zones: int) -> int:
    """Give how many replicas the largest of some evenly filled zones holds; 0 with a single zone: none is spare."""
    return 0 if zones == 1 else math.ceil(replicas / zones)


def with_spare_zone(needed: int, zones: int) -> int:
    """Give the smallest number of which so many are left when the largest zone is lost."""
    replicas = needed if zones == 1 else math.floor(needed * zones / (zones - 1))
    while replicas - lost(replicas, zones) < needed:
        replicas += 1
    return replicas


def lengths_of(n: int, mean: int, spread: float, rng: np.random.Generator) -> list[int]:
    """Give ascending log-normal token lengths of a mean and a standard deviation of so many means; all equal at 0."""
    if not spread:
        return [mean] * n
    sigma = math.sqrt(math.log1p(spread**2))
    found = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, n)
    lengths: list[int] = np.sort(np.maximum(1, np.rint(found))).astype(np.int64).tolist()
    return lengths


def poisson(n: int, rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Give the first arrivals of a Poisson stream."""
    return np.asarray(np.cumsum(rng.exponential(1.0, n)) / rate)


def thinned(trace_s: NDArray[np.float64], rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Give each recorded arrival with the probability that leaves so many a second, from 0 s on.

    Raises: SettingsError: if the trace has fewer calls a second, or too few are left to tell a percentile.
    """
    span_s = float(trace_s[-1] - trace_s[0])
    recorded = len(trace_s) / span_s
    if rate > recorded * (1 + 1e-9):
        raise SettingsError(
            f"trace: expected at least {rate:.6g} calls a second for one group, found {recorded:.6g}; a trace is only "
            "ever thinned: take that of more callers, or plan without one"
        )
    kept = trace_s[rng.random(len(trace_s)) < rate / recorded]
    if len(kept) < LEAST_CALLS:
        raise SettingsError(
            f"trace: expected at least {LEAST_CALLS} calls for one group at {rate:.6g} calls a second, found "
            f"{len(kept)}; take a longer one"
        )
    return np.asarray(kept - trace_s[0], dtype=np.float64)
