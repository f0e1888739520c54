"""Engines × intra-op threads, the time of a batch, and prefetching: where the defaults come from.

All servers are started at once and take turns, round by round: a fixed set of 200-item requests at saturation, then
some 50-item calls alone. Pairs a second and the median idle latency of each setting are given as ratios to the default
settings of the same round, and as they are. The pair cache is off.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.load import Call, ClientCost, connected, score_call
from benchmarks.measure import figure, options, requests_of, write_report
from benchmarks.servers import Server, cores, running
from service.settings import Settings

BATCH_MS = (20, 40, 80)
BIG, SMALL = 200, 50
IN_FLIGHT, IDLE_CALLS = 6, 5


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the grid."""

    engines: int
    threads: int
    batch_ms: int
    prefetch: bool

    @property
    def name(self) -> str:
        """Give it as the report names it."""
        return f"{self.engines}x{self.threads}, {self.batch_ms} ms, prefetch {'on' if self.prefetch else 'off'}"

    def server(self, arguments: Namespace) -> Server:
        """Give the server of this setting."""
        return Server(arguments.bundle, pair_cache_bytes=0, **asdict(self))


def grid_of(n_cores: int, *, quick: bool) -> list[Point]:
    """Give every setting whose engines × threads are the cores."""
    layouts = [(engines, n_cores // engines) for engines in range(1, n_cores + 1) if n_cores % engines == 0]
    if quick:
        return [Point(*layouts[0], BATCH_MS[1], False), Point(*layouts[-1], BATCH_MS[1], True)]
    return [Point(*layout, ms, ahead) for layout, ms, ahead in itertools.product(layouts, BATCH_MS, (False, True))]


def default_of(points: Sequence[Point]) -> Point:
    """Give the setting that the service has by default, the first one if it is not in the grid."""
    used = Settings()
    for point in points:
        layout = (used.n_engines, used.session_threads, used.batch_s)
        if (point.engines, point.threads, point.batch_ms / 1000) == layout:
            return point
    return points[0]


async def visit(server: Server, big: list[Call], small: list[Call], cost: ClientCost) -> tuple[float, float]:
    """Give the pairs a second of the big calls, several at a time, and the median seconds of the small ones alone."""
    async with connected(server.port) as client:
        with cost.measured():
            began = perf_counter()
            replies = await client.closed_loop(big, connections=IN_FLIGHT)
            pairs_per_s = sum(reply.scored for reply in replies) / (perf_counter() - began)
            alone = [await client.call(call) for call in small]
    wrong = [reply.status for reply in (*replies, *alone) if reply.status != 200]
    if wrong:
        raise SystemExit(f"expected only answers 200, found {wrong}")
    return pairs_per_s, float(np.median([reply.latency_s for reply in alone]))


async def measure(arguments: Namespace, servers: dict[Point, Server]) -> dict[str, Any]:
    """Let the settings take turns; every round starts with another one."""
    n_big, size = (2, 20) if arguments.quick else (arguments.requests, BIG)
    big = [score_call(query, titles) for query, titles in requests_of(arguments.data, [size] * n_big, seed=7)]
    small = [score_call(query, titles) for query, titles in requests_of(arguments.data, [SMALL] * IDLE_CALLS, seed=8)]
    cost = ClientCost()
    points = list(servers)
    for point in points:
        async with connected(servers[point].port) as client:
            for call in big[:2]:  # one by one: servers that start together first measure one another, and admit little
                await client.call(call)
        await visit(servers[point], big, small, cost)
    speeds: dict[Point, list[float]] = {point: [] for point in points}
    waits: dict[Point, list[float]] = {point: [] for point in points}
    for number in tqdm(range(arguments.rounds), file=sys.stderr, desc="rounds"):
        turn = number % len(points)
        for point in points[turn:] + points[:turn]:
            pairs_per_s, idle_s = await visit(servers[point], big, small, cost)
            speeds[point].append(pairs_per_s)
            waits[point].append(idle_s)
    default = default_of(points)
    return {
        "compared_to": default.name,
        "settings": {
            point.name: {
                "pairs_per_s": asdict(figure(speeds[point])),
                "pairs_per_s_ratio": asdict(figure(np.array(speeds[point]) / speeds[default])),
                "idle_ms": asdict(figure(1000 * np.array(waits[point]))),
                "idle_ratio": asdict(figure(np.array(waits[point]) / waits[default])),
            }
            for point in points
        },
        "client_share_of_cores": cost.share,
        "rounds": arguments.rounds,
    }


def main(argv: list[str]) -> int:
    """Measure and write results/grid.json."""
    parser = options(__doc__, "grid")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=IN_FLIGHT, help="of 200 items, in a round")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds = 2
    servers = {point: point.server(arguments) for point in grid_of(cores(), quick=arguments.quick)}
    with running(list(servers.values())):
        described = next(iter(servers.values())).description()
        figures = asyncio.run(measure(arguments, servers))
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
