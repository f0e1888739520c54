"""Saturated `/score` over HTTP against the bare session, on the same pairs and cores.

A round sends the same requests of 200 items, several at a time, and takes the seconds from the first byte out to the
last byte in; then a process of its own runs the same pairs through bare sessions of the server's layout, in ready-made
batches of as many tokens as the server's own had on average, length-sorted over all the requests that were in flight
together. The ratio is bare seconds / HTTP seconds: 1 means that HTTP, JSON, tokenising, queueing and policy cost
nothing. Shown beside it: the other even splits of the cores, and the token budget of offline scoring, which says what
the service's smaller batches cost. The pair cache is off; item tokens are cached, as in production after the first
minutes.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from dataclasses import asdict
from time import perf_counter

import numpy as np
from tqdm import tqdm

from benchmarks.bare import BareProcess, Layout, Work
from benchmarks.load import Call, Client, ClientCost, connected, score_call
from benchmarks.measure import figure, options, requests_of, write_report
from benchmarks.servers import Server, cores
from service.scorer import TOKEN_BUDGET

BOUND = 0.95
ITEMS, IN_FLIGHT = 200, 4


def layouts_of(engines: int, threads: int) -> list[Layout]:
    """Give the server's layout first, then the other even splits of the same cores."""
    n = engines * threads
    others = [Layout(k, n // k) for k in range(1, n + 1) if n % k == 0]
    first = Layout(engines, threads)
    return [first, *(layout for layout in others if layout != first)]


async def measure(arguments: Namespace, server: Server, bare_layouts: list[Layout]) -> dict[str, object]:
    """Interleave HTTP and bare rounds."""
    n_requests = IN_FLIGHT if arguments.quick else arguments.requests
    requests = requests_of(arguments.data, [arguments.items] * n_requests)
    calls = [score_call(query, titles) for query, titles in requests]
    precision = server.info()["precision"]
    cost = ClientCost()
    async with connected(server.port) as client:
        for _ in range(1 if arguments.quick else 3):
            before = server.metrics()
            await _http_round(client, calls)
        http_batches, budget = server.batches_since(before)
        groups = [requests[start : start + IN_FLIGHT] for start in range(0, n_requests, IN_FLIGHT)]
        first = (bare_layouts[0], budget)
        others = [*((layout, budget) for layout in bare_layouts[1:]), (bare_layouts[0], TOKEN_BUDGET)]
        seconds: dict[str, list[float]] = {"http": [], "bare": [], "bare_again": []}
        other_s: dict[tuple[Layout, int], list[float]] = {other: [] for other in others}
        with BareProcess(arguments.bundle, precision, bare_layouts) as bare:
            n_batches = {tokens: bare.prepare(Work(groups, tokens)) for tokens in (TOKEN_BUDGET, budget)}
            for layout, tokens in (first, *others):
                bare.run(layout, tokens)
            for number in tqdm(range(arguments.rounds), file=sys.stderr, desc="rounds"):
                for arm in seconds if number % 2 else reversed(seconds):
                    if arm == "http":
                        with cost.measured():
                            seconds[arm].append(await _http_round(client, calls))
                    else:
                        seconds[arm].append(bare.run(*first))
                for (layout, tokens), taken in other_s.items():
                    taken.append(bare.run(layout, tokens))
    pairs = n_requests * arguments.items
    http_s, bare_s = np.array(seconds["http"]), np.array(seconds["bare"])
    return {
        "bare_over_http": asdict(figure(bare_s / http_s, at_least=BOUND)),
        "aa_bare_over_bare": asdict(figure(np.array(seconds["bare_again"]) / bare_s)),
        "bare_over_http_otherwise": {
            f"{layout.engines}x{layout.threads}, {tokens} tokens": asdict(figure(np.array(taken) / http_s))
            for (layout, tokens), taken in other_s.items()
        },
        "http_pairs_per_s": asdict(figure(pairs / http_s)),
        "bare_pairs_per_s": asdict(figure(pairs / bare_s)),
        "client_share_of_cores": cost.share,
        "rounds": arguments.rounds,
        "requests_a_round": n_requests,
        "items": arguments.items,
        "in_flight": IN_FLIGHT,
        "token_budget": budget,
        "http_batches_a_round": http_batches,
        "bare_batches_a_round": n_batches[budget],
    }


async def _http_round(client: Client, calls: list[Call]) -> float:
    began = perf_counter()
    replies = await client.closed_loop(calls, connections=IN_FLIGHT)
    taken = perf_counter() - began
    wrong = [reply.status for reply in replies if reply.status != 200 or reply.scored != reply.call.n_items]
    if wrong:
        raise SystemExit(f"expected every pair scored, found the answers {wrong}")
    return taken


def main(argv: list[str]) -> int:
    """Measure and write results/http_saturated.json."""
    parser = options(__doc__, "http_saturated")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--requests", type=int, default=2 * IN_FLIGHT, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--engines", type=int, help="default: the service's")
    parser.add_argument("--threads", type=int, help="intra-op threads of an engine; default: the service's")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.items, arguments.rounds = 20, 2
    layout = {name: value for name in ("engines", "threads") if (value := getattr(arguments, name)) is not None}
    with Server(arguments.bundle, pair_cache_bytes=0, **layout) as server:
        described = server.description()
        bare_layouts = layouts_of(described["engines"], described["threads"])
        figures = asyncio.run(measure(arguments, server, bare_layouts))
    figures["cores"] = cores()
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
