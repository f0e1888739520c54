"""What the pair cache gives under skewed traffic, and how long a fully cached call takes.

Requests are drawn by a Zipf law over distinct queries, each with a fixed list of items. One server caches pairs, one
does not; both are sent the same chunk of requests in turn, in a closed loop. The speed-up curve is (seconds without) /
(seconds with the cache) of each chunk against the requests sent before; the hit rate is read from the service's own
counters. Each law starts with an empty cache.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.load import Call, Client, ClientCost, connected, score_call
from benchmarks.measure import figure, options, p99, requests_of, write_report
from benchmarks.servers import Server, running

BOUND_MS = 5.0
LAWS = (0.8, 1.0, 1.2)
CACHED_ITEMS = 100
CONNECTIONS = 4
HITS, MISSES = "relevance_cache_hits_total", "relevance_cache_misses_total"


def zipf_rows(n_queries: int, s: float, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw n queries of which the r-th most frequent comes with a probability proportional to 1 / r^s."""
    weight = 1 / np.arange(1, n_queries + 1) ** s
    return rng.choice(n_queries, n, p=weight / weight.sum())


async def law(calls: Sequence[Call], s: float, servers: tuple[Server, Server], arguments: Namespace) -> dict[str, Any]:
    """Send the traffic of one law, chunk by chunk, to the server with the cache and to the one without."""
    with_cache, without = servers
    cost = ClientCost()
    rows = zipf_rows(len(calls), s, arguments.requests, np.random.default_rng(0))
    chunks = np.array_split(rows, max(1, arguments.requests // arguments.chunk))
    curve, ratios = [], []
    start = with_cache.metrics()
    async with connected(with_cache.port) as cached, connected(without.port) as plain:
        for number, chunk in enumerate(tqdm(chunks, file=sys.stderr, desc=f"s = {s}")):
            before = with_cache.metrics()
            seconds: dict[str, float] = {}
            order = [("cached", cached), ("plain", plain)]
            for name, client in order if number % 2 else order[::-1]:
                with cost.measured():
                    seconds[name] = await _send(client, [calls[row] for row in chunk.tolist()])
            after = with_cache.metrics()
            hits, misses = (after.since(before, name, tier="local") for name in (HITS, MISSES))
            ratios.append(seconds["plain"] / seconds["cached"])
            curve.append(
                {"requests_before": number * len(chunk), "hit_rate": hits / (hits + misses), "speed_up": ratios[-1]}
            )
        total_hits, total_misses = (after.since(start, name, tier="local") for name in (HITS, MISSES))
    late = ratios[len(ratios) // 2 :]
    return {
        "hit_rate": total_hits / (total_hits + total_misses),
        "hit_rate_if_unbounded": 1 - len(set(rows.tolist())) / len(rows),
        "speed_up_second_half": asdict(figure(late)),
        "client_share_of_cores": cost.share,
        "curve": curve,
    }


async def cached_call(server: Server, arguments: Namespace) -> dict[str, Any]:
    """Time one call again and again whose pairs are all in the cache, at idle."""
    ((query, titles),) = requests_of(arguments.data, [CACHED_ITEMS], seed=5)
    call = score_call(query, titles)
    latencies = []
    async with connected(server.port) as client:
        await client.call(call)
        before = server.metrics()
        for _ in range(arguments.cached_calls):
            reply = await client.call(call)
            if reply.status != 200 or reply.scored != CACHED_ITEMS:
                raise SystemExit(f"expected {CACHED_ITEMS} scored pairs, found status {reply.status}")
            latencies.append(1000 * reply.latency_s)
    missed = server.metrics().since(before, MISSES, tier="local")
    if missed:
        raise SystemExit(f"expected every pair in the cache, found {missed:.0f} misses")
    return {
        "latency_ms_median": asdict(figure(latencies, at_most=BOUND_MS)),
        "latency_ms_p99": asdict(figure(latencies, statistic=p99, at_most=BOUND_MS)),
        "items": CACHED_ITEMS,
    }


async def _send(client: Client, calls: list[Call]) -> float:
    began = perf_counter()
    replies = await client.closed_loop(calls, connections=CONNECTIONS)
    taken = perf_counter() - began
    if any(reply.status != 200 for reply in replies):
        raise SystemExit(f"expected only answers 200, found {sorted({reply.status for reply in replies})}")
    return taken


def main(argv: list[str]) -> int:
    """Measure and write results/zipf.json."""
    parser = options(__doc__, "zipf")
    parser.add_argument("--queries", type=int, default=500, help="distinct")
    parser.add_argument("--items", type=int, default=50, help="of each query")
    parser.add_argument("--requests", type=int, default=1200, help="of each law")
    parser.add_argument("--chunk", type=int, default=40, help="requests sent to one server before the other")
    parser.add_argument("--cached-calls", type=int, default=1000)
    arguments = parser.parse_args(argv)
    laws: Sequence[float] = LAWS
    if arguments.quick:
        laws = LAWS[1:2]
        arguments.queries, arguments.items, arguments.requests, arguments.chunk, arguments.cached_calls = 8, 5, 12, 6, 5
    requests = requests_of(arguments.data, [arguments.items] * arguments.queries, seed=4)
    calls = [score_call(query, titles) for query, titles in requests]
    figures: dict[str, Any] = {}
    without = Server(arguments.bundle, pair_cache_bytes=0)
    with running([without]):
        for s in laws:
            with Server(arguments.bundle) as server:
                figures[f"zipf_{s}"] = asyncio.run(law(calls, s, (server, without), arguments))
                if s == laws[-1]:
                    described = server.description()
                    figures["fully_cached_call"] = asyncio.run(cached_call(server, arguments))
    figures |= {name: getattr(arguments, name) for name in ("queries", "items", "requests", "chunk")}
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
