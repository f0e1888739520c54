"""Latency of 50-item calls while one client sends 3,000-item calls back to back, against their latency alone.

The 50-item calls are an open model: Poisson arrivals at a small share of the measured capacity, so that alone they
rarely queue; latency counts from the scheduled time. Blocks alone and under load take turns; the interval of the ratio
of p99s resamples whole blocks. The same is shown of the same service with a first-in first-out queue. The pair cache is
off. Event-loop lag is read from the service's own histogram over the blocks under load.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.load import Call, Client, ClientCost, Reply, connected, poisson_times, score_call
from benchmarks.measure import block_ratio, options, p99, requests_of, write_report
from benchmarks.servers import Server, quantile_edge, running

BOUND = 3.0
LAG_BOUND_S = 0.01
SMALL, BIG = 50, 3000
N_SMALL, N_BIG = 100, 4
LAG = "relevance_event_loop_lag_seconds"
FAIR, FIFO = "fair", "fifo"


async def block(
    client: Client, small: list[Call], times: NDArray[np.float64], big: list[Call]
) -> tuple[list[Reply], list[Reply]]:
    """Make the small calls at their times, with the big ones back to back beside them if there are any."""
    done = asyncio.Event()

    async def back_to_back() -> list[Reply]:
        """Send big calls until the small ones are answered."""
        replies = []
        for call in itertools.cycle(big):
            replies.append(await client.call(call))
            if done.is_set():
                break
        return replies

    loading = asyncio.create_task(back_to_back()) if big else None
    calls = list(itertools.islice(itertools.cycle(small), len(times)))
    replies = await client.open_model(calls, times)
    done.set()
    return replies, await loading if loading else []


class Arm:
    """One server under both conditions: what it answered, block by block."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.alone: list[NDArray[np.float64]] = []
        self.loaded: list[NDArray[np.float64]] = []
        self.big: list[float] = []
        self.unanswered = 0
        self.lag: Counter[float] = Counter()

    def add(self, small: list[Reply], big: list[Reply]) -> None:
        """Count one block; it was under load if there are big replies."""
        latencies = np.array([reply.latency_s for reply in small if reply.status == 200])
        (self.loaded if big else self.alone).append(latencies)
        self.big += [reply.latency_s for reply in big if reply.status == 200]
        self.unanswered += sum(reply.status != 200 for reply in (*small, *big))

    def figures(self, *, bounded: bool) -> dict[str, Any]:
        """Give the figures of this arm."""
        alone, loaded = np.concatenate(self.alone), np.concatenate(self.loaded)
        lag = quantile_edge(self.lag, 0.99)
        return {
            "p99_loaded_over_alone": asdict(block_ratio(self.loaded, self.alone, at_most=BOUND if bounded else None)),
            "alone_ms": {"median": 1000 * float(np.median(alone)), "p99": 1000 * float(p99(alone)), "n": len(alone)},
            "loaded_ms": {
                "median": 1000 * float(np.median(loaded)),
                "p99": 1000 * float(p99(loaded)),
                "n": len(loaded),
            },
            "big_call_s_median": float(np.median(self.big)) if self.big else None,
            "big_calls": len(self.big),
            "not_200": self.unanswered,
            "event_loop_lag_p99_s": {
                "at_most": lag if lag is not None and isfinite(lag) else None,
                "bound": LAG_BOUND_S,
                "verdict": None if lag is None else "met" if lag <= LAG_BOUND_S else "missed",
            },
        }


async def measure(arguments: Namespace, arms: dict[str, Arm]) -> dict[str, Any]:
    """Take turns between arms and conditions."""
    small_of = requests_of(arguments.data, [SMALL] * N_SMALL, seed=1)
    small = [score_call(query, titles) for query, titles in small_of]
    big = [
        score_call(query, titles)
        for query, titles in requests_of(arguments.data, [arguments.big_items] * N_BIG, seed=2)
    ]
    rng = np.random.default_rng(0)
    cost = ClientCost()
    async with connected(arms[FAIR].server.port) as fair, connected(arms[FIFO].server.port) as fifo:
        clients = {FAIR: fair, FIFO: fifo}
        speeds = [await clients[name].capacity(small, seconds=arguments.block_s, connections=4) for name in arms]
        rate = arguments.share * min(speeds) / SMALL
        for number in tqdm(range(arguments.blocks), file=sys.stderr, desc="blocks"):
            times = poisson_times(rate, arguments.block_s, rng)
            times = times if len(times) else np.zeros(1)
            for name in list(arms) if number % 2 else list(arms)[::-1]:
                for load in ([], big):
                    before = await asyncio.to_thread(arms[name].server.metrics)
                    with cost.measured():
                        arms[name].add(*await block(clients[name], small, times, load))
                    if load:
                        after = await asyncio.to_thread(arms[name].server.metrics)
                        arms[name].lag.update(after.histogram_since(before, LAG))
    return {
        **{name: arm.figures(bounded=name == FAIR) for name, arm in arms.items()},
        "capacity_pairs_per_s": dict(zip(arms, speeds, strict=True)),
        "small_calls_per_s": rate,
        "share_of_capacity": arguments.share,
        "client_share_of_cores": cost.share,
        "blocks": arguments.blocks,
        "block_s": arguments.block_s,
        "small_items": SMALL,
        "big_items": arguments.big_items,
    }


def main(argv: list[str]) -> int:
    """Measure and write results/fairness.json."""
    parser = options(__doc__, "fairness")
    parser.add_argument("--blocks", type=int, default=12, help="of each condition and server")
    parser.add_argument("--block-s", type=float, default=20)
    parser.add_argument("--share", type=float, default=0.15, help="of capacity, taken by the 50-item calls")
    parser.add_argument("--big-items", type=int, default=BIG)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.blocks, arguments.block_s, arguments.big_items = 1, 0.5, 300
    arms = {
        FAIR: Arm(Server(arguments.bundle, pair_cache_bytes=0)),
        FIFO: Arm(Server(arguments.bundle, module="benchmarks.fifo_server", pair_cache_bytes=0)),
    }
    with running([arm.server for arm in arms.values()]):
        described = arms[FAIR].server.description()
        figures = asyncio.run(measure(arguments, arms))
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
