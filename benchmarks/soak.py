"""Mixed traffic for a long time: does memory grow, is anything left unanswered.

A closed loop of several clients keeps the service saturated with calls of 1 to 3,000 items (log-uniform), some
cancelled on the way, some wrong in themselves, some with deadlines too short to meet. Resident memory is sampled
every ten seconds; what is sampled in the first fifth of the time is warm-up. The pair cache is small, so that it is
full, and evicting, before warm-up ends.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.load import Call, ClientCost, connected, http_post, score_call
from benchmarks.measure import Figure, options, requests_of, verdict, write_report
from benchmarks.servers import Server

BOUND = 0.05
WARM_UP = 0.2
SAMPLE_S = 10.0
CLIENTS = 6
MOST_ITEMS = 3000
PAIR_CACHE_BYTES = 8 * 1024 * 1024
ALLOWED = {"ok": {200, 429}, "short": {200, 429, 504}, "bad": {400, 413, 422}}
SHARES = {"ok": 0.80, "cancelled": 0.08, "short": 0.07, "bad": 0.05}
BAD_BODIES = (
    b"{",
    b'{"query": "steel kettle", "items": []}',
    b'{"query": "steel kettle", "items": [{"title": "steel kettle 2 l"}]}',
    b'{"query": "steel kettle", "items": [{"id": 1, "title": "steel kettle 2 l"}], "min_tier": "two"}',
    b'{"query": "steel kettle", "items": "steel kettle 2 l"}',
    b'\xff\xfe{"query"',
)


def make_calls(arguments: Namespace, rng: np.random.Generator) -> list[Call]:
    """Give calls of all kinds, in a random order."""
    n = arguments.calls
    sizes = np.exp(rng.uniform(0, np.log(arguments.most_items), n)).astype(int).tolist()
    kinds = rng.choice(list(SHARES), n, p=list(SHARES.values())).tolist()
    kinds[: len(SHARES)] = list(SHARES)
    calls: list[Call] = []
    for (query, titles), kind in zip(requests_of(arguments.data, sizes, seed=6), kinds, strict=True):
        if kind == "bad":
            calls.append(Call(http_post(BAD_BODIES[len(calls) % len(BAD_BODIES)]), 0, kind))
        else:
            deadline_s = float(rng.uniform(0.002, 0.05)) if kind == "short" else None
            calls.append(score_call(query, titles, kind=kind, deadline_s=deadline_s))
    return calls


class Soak:
    """One run: what came back, and the memory of the process meanwhile."""

    def __init__(self, server: Server, calls: Sequence[Call], seconds: float) -> None:
        self._server, self._calls, self._seconds = server, calls, seconds
        self._ends = perf_counter() + seconds
        self.answers: dict[str, Counter[int]] = {kind: Counter() for kind in SHARES}
        self.samples: list[tuple[float, int]] = []
        self.cost = ClientCost()

    async def run(self, sample_s: float) -> None:
        """Send calls until the time is over."""
        async with connected(self._server.port) as client:

            async def worker(number: int) -> None:
                """Send one call after the other."""
                rng = np.random.default_rng(number)
                while perf_counter() < self._ends:
                    call = self._calls[int(rng.integers(len(self._calls)))]
                    if call.kind == "cancelled":
                        await client.abandon(call, float(rng.uniform(0, 0.3)))
                        self.answers[call.kind][0] += 1
                    else:
                        self.answers[call.kind][(await client.call(call)).status] += 1

            sampling = asyncio.create_task(self._sample(sample_s))
            with self.cost.measured():
                await asyncio.gather(*(worker(number) for number in range(CLIENTS)))
            await sampling

    async def _sample(self, every_s: float) -> None:
        began = perf_counter()
        with tqdm(total=round(self._seconds), file=sys.stderr, desc="seconds") as bar:
            while perf_counter() < self._ends:
                self.samples.append((perf_counter() - began, self._server.rss_bytes()))
                bar.update(round(perf_counter() - began) - bar.n)
                await asyncio.sleep(every_s)

    def figures(self) -> dict[str, Any]:
        """Give the figures; the server must still be there."""
        at_s, rss = np.array(self.samples, dtype=np.float64).T
        warm = at_s >= WARM_UP * self._seconds
        unexpected = {
            kind: {str(code): count for code, count in self.answers[kind].items() if code not in allowed}
            for kind, allowed in ALLOWED.items()
        }
        metrics = self._server.metrics()
        return {
            "rss_growth_fitted": asdict(fitted_growth(at_s[warm], rss[warm])),
            "rss_growth_max_over_median": peak_growth(rss[warm]),
            "rss_mb": {"first": rss[0] / 1e6, "median_warm": float(np.median(rss[warm])) / 1e6, "last": rss[-1] / 1e6},
            "unanswered": sum(self.answers[kind][0] for kind in ALLOWED),
            "unexpected_answers": {kind: codes for kind, codes in unexpected.items() if codes},
            "answers": {kind: {str(c): n for c, n in sorted(codes.items())} for kind, codes in self.answers.items()},
            "left_in_flight": metrics.total("relevance_inflight_requests") - 1,
            "left_in_queue": metrics.total("relevance_queue_requests"),
            "client_share_of_cores": self.cost.share,
            "samples_mb": [round(value / 1e6, 1) for value in rss.tolist()],
        }


def fitted_growth(at_s: NDArray[np.float64], rss: NDArray[np.float64]) -> Figure:
    """Give the growth of a straight line over the whole time, as a share of the median level."""
    rng = np.random.default_rng(0)

    def growth(rows: NDArray[np.int64]) -> float:
        """Fit the line to some samples."""
        slope = np.polyfit(at_s[rows], rss[rows], 1)[0] if len(set(at_s[rows].tolist())) > 1 else 0.0
        return float(slope * (at_s[-1] - at_s[0]) / np.median(rss))

    n = len(at_s)
    drawn = [growth(rng.integers(0, n, n)) for _ in range(1000)]
    low, high = float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))
    return Figure(growth(np.arange(n)), low, high, n, BOUND, verdict(low, high, at_most=BOUND))


def peak_growth(rss: NDArray[np.float64]) -> dict[str, Any]:
    """Give the highest sample over the median one, less 1."""
    value = float(rss.max() / np.median(rss) - 1)
    return {"value": value, "n": len(rss), "bound": BOUND, "verdict": verdict(value, value, at_most=BOUND)}


async def _settled(server: Server) -> None:
    """Wait until no request is left but the one that asks."""
    for _ in range(100):
        metrics = await asyncio.to_thread(server.metrics)
        if metrics.total("relevance_inflight_requests") <= 1:
            return
        await asyncio.sleep(0.1)


async def measure(server: Server, arguments: Namespace) -> dict[str, Any]:
    """Run the soak on a started server."""
    soak = Soak(server, make_calls(arguments, np.random.default_rng(0)), 60 * arguments.minutes)
    await soak.run(arguments.sample_s)
    await _settled(server)
    return soak.figures()


def main(argv: list[str]) -> int:
    """Measure and write results/soak.json."""
    parser = options(__doc__, "soak")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--sample-s", type=float, default=SAMPLE_S)
    parser.add_argument("--calls", type=int, default=400, help="distinct calls")
    parser.add_argument("--most-items", type=int, default=MOST_ITEMS)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.minutes, arguments.sample_s, arguments.calls, arguments.most_items = 0.03, 0.1, 40, 100
    with Server(arguments.bundle, pair_cache_bytes=PAIR_CACHE_BYTES) as server:
        described = server.description()
        figures = asyncio.run(measure(server, arguments))
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
