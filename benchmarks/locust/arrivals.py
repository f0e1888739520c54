"""What `make load` sends and when: phases of offered load, Poisson arrivals, new calls and Zipf repeats.

Load is told in multiples of the service's capacity in scored pairs a second. The arrivals of all phases are drawn
before the first call is sent, from a fixed seed, so nothing that the service does can change them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.load import poisson_times, score_call
from benchmarks.measure import requests_of, titles_of
from benchmarks.zipf import zipf_rows

OVERLOAD = 2.0
_N_QUERIES = 3000
_N_TITLES = 5000
_MOST_KEPT = 500
"""Calls of a size that a repeat may repeat: they are kept in memory."""
_GRID = 200
TOLD_SHARE = 0.9
"""Of a size's limit that the service is told as its deadline; the rest is for the way there and back."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the schedule whose load goes from `start` to `end` in a straight line, in multiples of capacity.

    Args: share: of the schedule's seconds; repeats: whether its calls repeat answered ones; settled: whether it begins
        only when every call before it is answered: what overload has left in the queue is not its load.
    """

    name: str
    share: float
    start: float
    end: float
    repeats: bool = False
    settled: bool = False

    @property
    def load(self) -> float:
        """Mean load."""
        return (self.start + self.end) / 2


PHASES = (
    Phase("ramp", 0.15, 0.05, 0.4),
    Phase("cold", 0.25, 0.4, 0.4),
    Phase("warm", 0.20, 0.4, 0.4, repeats=True),
    Phase("overload", 0.20, OVERLOAD, OVERLOAD),
    Phase("recovery", 0.20, 0.4, 0.4, settled=True),
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a call is due, in seconds from the start, in which phase, begun when, and of how many items."""

    at_s: float
    phase: Phase
    began_s: float
    size: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the calls by their number of items; the shares add up to one."""

    shares: Mapping[int, float]

    @property
    def mean_items(self) -> float:
        """Items of a call, on average."""
        return sum(size * share for size, share in self.shares.items())

    @property
    def smallest(self) -> int:
        """The smallest size."""
        return min(self.shares)

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """Draw sizes."""
        sizes: list[int] = rng.choice(list(self.shares), n, p=list(self.shares.values())).tolist()
        return sizes


def schedule(capacity: float, mix: Mix, seconds: float, rng: np.random.Generator) -> list[Arrival]:
    """Draw the arrivals of all phases: a Poisson process whose rate follows the load.

    Args: capacity: scored pairs a second; seconds: of all phases together.
    """
    arrivals: list[Arrival] = []
    began = 0.0
    for phase in PHASES:
        lasts = phase.share * seconds
        at = np.linspace(0, lasts, _GRID)
        load = phase.start + (phase.end - phase.start) * at / lasts
        rate = load * capacity / mix.mean_items
        expected = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(at))])
        times = np.interp(poisson_times(1.0, float(expected[-1]), rng), expected, at)
        sizes = mix.draw(len(times), rng)
        arrivals += [Arrival(began + t, phase, began, size) for t, size in zip(times.tolist(), sizes, strict=True)]
        began += lasts
    return arrivals


def default_limits_s(sizes: Sequence[int], capacity: float) -> dict[int, float]:
    """Give what the p99 of a size may be unless told otherwise: 0.1 s and ten times what it takes alone."""
    return {size: 0.1 + 10 * size / capacity for size in sizes}


class Bodies:
    """Makes the bodies of calls: new ones, no pair of which came before, and repeats of answered ones by a Zipf law.

    Args: data: Parquet file with query, query_locale, product_title, product_locale, else texts are generated;
        exponent: the n-th oldest answered call of a size is repeated with a probability proportional to 1 / n^exponent.
    Raises: SystemExit: if calls are to have more items than there are titles.
    """

    def __init__(self, data: Path | None, mix: Mix, *, exponent: float, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._titles = list(dict.fromkeys(titles_of(data, _N_TITLES, self._rng)["us"]))
        if max(mix.shares) > len(self._titles):
            raise SystemExit(f"--sizes: expected at most {len(self._titles)} items, found {max(mix.shares)}")
        self._queries = [query for query, _ in requests_of(data, [1] * _N_QUERIES, seed=seed)]
        self._exponent = exponent
        self._made = 0
        self._answered: dict[int, list[bytes]] = {size: [] for size in mix.shares}

    def new(self, size: int, limit_s: float | None) -> bytes:
        """Make a body of the next query, numbered lest it come again, and titles drawn for it.

        Args: limit_s: None tells the service no deadline.
        """
        query = f"{self._queries[self._made % len(self._queries)]} {self._made}"
        self._made += 1
        titles = [self._titles[i] for i in self._rng.choice(len(self._titles), size, replace=False).tolist()]
        told_s = None if limit_s is None else TOLD_SHARE * limit_s
        return score_call(query, titles, deadline_s=told_s).payload.partition(b"\r\n\r\n")[2]

    def answered(self, size: int, body: bytes) -> None:
        """Take note of a call all of whose pairs were scored."""
        if len(self._answered[size]) < _MOST_KEPT:
            self._answered[size].append(body)

    def repeat(self, size: int) -> bytes | None:
        """Draw an answered call of this size; None if there is none yet."""
        known = self._answered[size]
        if not known:
            return None
        return known[int(zipf_rows(len(known), self._exponent, 1, self._rng)[0])]
