"""What every server is asked in one round, and what comes of it; texts and arrivals of a round are the same for all."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from benchmarks.bare import Requests
from benchmarks.load import Client, Reply, connected, poisson_times, until
from benchmarks.measure import OUTLIER_SHARE, requests_of
from benchmarks.overload import DEADLINES, OVERLOAD
from benchmarks.peers.arms import Arm, Running
from relevance.text import TextTemplate, clean

MIX = {50: 16, 200: 3, 1000: 1}
"""Requests of each size in one pass of the mix: 80, 15 and 5 %, as in `benchmarks.overload`."""
SMALL, LARGE = {50: 6, 500: 1}, {3000: 1}
"""Requests of each size that are made one after the other: in every round, and where a round has time for them."""
LOAD = 0.7
CONNECTIONS = 8
_REPEATED = 40
_PADDING = "relevance_batch_padding_ratio"


@dataclass(frozen=True, slots=True)
class Rates:
    """What servers can do, and what all of them are offered therefore.

    Args: mix, outliers: capacity in pairs a second; idle_s: of a request alone, by size.
    """

    mix: float
    outliers: float
    idle_s: dict[int, float]

    def deadline_s(self, n_items: int) -> float:
        """Give the deadline of a request."""
        return DEADLINES * self.idle_s[n_items]


@dataclass(frozen=True, slots=True)
class Offer:
    """Arrivals by a Poisson process.

    Args: rate: pairs a second; wait_s: for answers after the last arrival; seed: of the times; told: deadlines, to a
        server that takes one.
    """

    rate: float
    seconds: float
    wait_s: float
    seed: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked; seconds are of arrivals.

    Args: wait_s: for answers after the last arrival; divide: all sizes by this; alternate: a round has overload or the
        largest requests, else both.
    """

    mix_s: float = 12.0
    outliers_s: float = 14.0
    overload_s: float = 25.0
    calibrate_s: float = 5.0
    wait_s: float = 15.0
    divide: int = 1
    alternate: bool = True

    def size(self, size: int) -> int:
        """Give a size as it is asked for."""
        return max(2, size // self.divide)

    def mix(self, rates: Rates, seed: int) -> Offer:
        """Give the arrivals of the mix, below the better peer's capacity."""
        return Offer(LOAD * rates.mix, self.mix_s, self.wait_s, seed)

    def outliers(self, rates: Rates, seed: int) -> Offer:
        """Give the arrivals of the mix with outliers, below the better peer's capacity for those."""
        return Offer(LOAD * rates.outliers, self.outliers_s, self.wait_s, seed)

    def overload(self, rates: Rates, seed: int) -> Offer:
        """Give the arrivals of the mix at twice the better peer's capacity; answers after the last are not counted."""
        return Offer(OVERLOAD * rates.mix, self.overload_s, 0.0, seed, told=True)


QUICK = Plan(mix_s=1.0, outliers_s=1.0, overload_s=1.0, calibrate_s=0.3, wait_s=3.0, divide=25, alternate=False)


@dataclass(frozen=True, slots=True)
class Texts:
    """The requests of one round.

    Args: number: of the round, which seeds everything random in it; single: by size; overloaded: whether the round
        ends with overload.
    """

    number: int
    single: dict[int, Requests]
    mix: Requests
    outliers: Requests
    overloaded: bool


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What became of requests that arrived at their times.

    Args: latency_s: by size, up to where the client gave up if no answer came; codes: 0 = no answer; offered, goodput:
        pairs a second, and those scored within the deadline.
    """

    latency_s: dict[int, NDArray[np.float64]]
    codes: Counter[int]
    offered: float
    goodput: float


@dataclass(slots=True)
class Measured:
    """One server in one round; seconds, bytes, pairs a second.

    Args: padding, batch_tokens: of ours, by workload.
    """

    ready_s: float
    rss: int = 0
    single_s: dict[int, list[float]] = field(default_factory=dict)
    mix_rate: float = 0.0
    padding: dict[str, float] = field(default_factory=dict)
    batch_tokens: dict[str, int] = field(default_factory=dict)
    mix: Arrivals | None = None
    outliers: Arrivals | None = None
    overload: Arrivals | None = None


def texts_of(data: Path | None, plan: Plan, number: int) -> Texts:
    """Give the texts of a round."""
    sizes = [plan.size(size) for size, count in MIX.items() for _ in range(count)]
    in_order = np.random.default_rng(number).permutation(sizes).tolist()
    single = SMALL if plan.alternate and number % 2 == 0 else SMALL | LARGE
    seeds = itertools.count(100 * number)
    return Texts(
        number,
        {size: cleaned(requests_of(data, [plan.size(size)] * n, seed=next(seeds))) for size, n in single.items()},
        cleaned(requests_of(data, in_order, seed=next(seeds))),
        with_outliers(cleaned(requests_of(data, in_order, seed=next(seeds))), number),
        overloaded=not plan.alternate or number % 2 == 0,
    )


def cleaned(requests: Requests) -> Requests:
    """Give the texts as the bundle's template reads them, so that all servers read the same."""
    most = TextTemplate().max_chars
    return [(clean(query, most), [clean(title, most) for title in titles]) for query, titles in requests]


def with_outliers(requests: Requests, seed: int) -> Requests:
    """Give the requests with a share of their titles 40 times as long, up to the characters that are read."""
    rng = np.random.default_rng(seed)
    most = TextTemplate().max_chars
    return [
        (query, [" ".join([t] * _REPEATED)[:most].rstrip() if rng.random() < OUTLIER_SHARE else t for t in titles])
        for query, titles in requests
    ]


async def calibrate(arm: Arm, running: Running, texts: Texts, plan: Plan) -> Rates:
    """Measure one server's idle latency by size, and its capacity for both mixes."""
    async with connected(running.process.port) as client:
        await _alone(client, arm, texts.mix[0])
        by_size = {len(request[1]): request for request in texts.mix}
        idle_s = {size: await _alone(client, arm, request) for size, request in by_size.items()}
        mix = await saturated(client, arm, texts.mix, seconds=plan.calibrate_s)
        outliers = await saturated(client, arm, texts.outliers, seconds=plan.calibrate_s)
    return Rates(mix, outliers, idle_s)


async def measure_arm(arm: Arm, running: Running, texts: Texts, rates: Rates, plan: Plan) -> Measured:
    """Ask one server everything a round asks; overload comes last, for some servers do not recover soon."""
    found = Measured(running.ready_s)
    async with connected(running.process.port) as client:
        await _alone(client, arm, texts.mix[0])
        for size, requests in texts.single.items():
            found.single_s[size] = [await _alone(client, arm, request) for request in requests]
        with _batches(running, found, "mix"):
            found.mix_rate = await saturated(client, arm, texts.mix)
        found.mix = await _arrivals(client, arm, texts.mix, rates, plan.mix(rates, texts.number))
        with _batches(running, found, "outliers"):
            found.outliers = await _arrivals(client, arm, texts.outliers, rates, plan.outliers(rates, texts.number))
        found.rss = running.process.rss_bytes()
        if texts.overloaded:
            found.overload = await _arrivals(client, arm, texts.mix, rates, plan.overload(rates, texts.number))
    return found


async def saturated(client: Client, arm: Arm, requests: Requests, *, seconds: float = math.inf) -> float:
    """Give the pairs a second of a closed loop over the requests, once or until some seconds have passed."""
    calls = [call for request in requests for call in arm.calls(*request)]
    began = perf_counter()
    replies = await client.closed_loop(until(began + seconds, calls), connections=CONNECTIONS)
    taken = perf_counter() - began
    _check_complete(arm, replies)
    return sum(reply.scored for reply in replies) / taken


async def _alone(client: Client, arm: Arm, request: tuple[str, list[str]]) -> float:
    """Make one request, its calls at once if it needs several; gives the seconds to the last answer."""
    calls = arm.calls(*request)
    began = perf_counter()
    replies = await client.closed_loop(calls, connections=len(calls))
    taken = perf_counter() - began
    _check_complete(arm, replies)
    return taken


async def _arrivals(client: Client, arm: Arm, requests: Requests, rates: Rates, offer: Offer) -> Arrivals:
    """Let the requests arrive at random times, again and again in their order."""
    mean = float(np.mean([len(titles) for _, titles in requests]))
    at_s = poisson_times(offer.rate / mean, offer.seconds, np.random.default_rng(offer.seed))
    arriving = list(itertools.islice(itertools.cycle(requests), len(at_s)))
    calls = [
        call
        for query, titles in arriving
        for call in arm.calls(query, titles, deadline_s=rates.deadline_s(len(titles)), told=offer.told)
    ]
    replies = await client.open_model(calls, at_s, wait_s=offer.wait_s)
    if not offer.told:
        _check_complete(arm, [reply for reply in replies if reply.status])
    latency_s: dict[int, list[float]] = {}
    for reply in replies:
        # A refusal is a fast answer of no use; a call that was given up took at least as long as was waited.
        if reply.status in (0, 200):
            latency_s.setdefault(reply.call.n_items, []).append(reply.latency_s)
    return Arrivals(
        latency_s={size: np.array(found) for size, found in latency_s.items()},
        codes=Counter(reply.status for reply in replies),
        offered=sum(call.n_items for call in calls) / offer.seconds,
        goodput=sum(reply.pairs_in_time for reply in replies) / offer.seconds,
    )


@contextmanager
def _batches(running: Running, found: Measured, name: str) -> Iterator[None]:
    """Read from our own metrics what batches were like meanwhile; other servers do not tell."""
    if running.ours is None:
        yield
        return
    before = running.ours.metrics()
    yield
    now = running.ours.metrics()
    count = now.since(before, f"{_PADDING}_count")
    if count:
        found.padding[name] = now.since(before, f"{_PADDING}_sum") / count
        found.batch_tokens[name] = int(now.since(before, "relevance_batch_tokens_sum") / count)


def _check_complete(arm: Arm, replies: Sequence[Reply]) -> None:
    wrong = [reply for reply in replies if reply.status != 200 or reply.scored != reply.call.n_items]
    if wrong:
        raise SystemExit(
            f"{arm.name}: expected {wrong[0].call.n_items} scored pairs, found {wrong[0].scored} with status "
            f"{wrong[0].status}"
        )
