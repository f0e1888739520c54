"""What the service adds to one idle call of 100 items: HTTP latency minus the bare session's on the same pairs.

One client, one keep-alive connection, a call at a time. Two servers, one with and one without a warm item-token cache,
and the bare session in a process of its own take turns; the pair cache is off. The default bundle of this program is a
two-layer one with MiniLM widths (`benchmarks.two_layer`), whose session is short enough for milliseconds to show.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.bare import BareProcess, Layout, Work
from benchmarks.load import ClientCost, connected, score_call, whole_latency
from benchmarks.measure import figure, options, p99, requests_of, write_report
from benchmarks.servers import Server, running

BOUND_MS = 3.0
ITEMS = 100
QUIET_S = 0.02
"""Between two calls: onnxruntime's threads spin for a while after a run, and must not take the other's cores."""
SLACK = 1.1
"""Token budget of the bare batches over the mean of the server's, so that a call longer than most is not split."""
WARM, COLD = "item_cache_warm", "item_cache_cold"


async def measure(arguments: Namespace, servers: dict[str, Server]) -> dict[str, object]:
    """Take turns between the servers and the bare session."""
    rounds, n_requests = arguments.rounds, arguments.requests
    requests = requests_of(arguments.data, [arguments.items] * n_requests)
    calls = [score_call(query, titles) for query, titles in requests]
    described = servers[WARM].description()
    layout = Layout(described["engines"], described["threads"])
    taken: dict[str, list[float]] = {name: [] for name in (*servers, "bare", "bare_again")}
    cost = ClientCost()
    async with connected(servers[WARM].port) as warm, connected(servers[COLD].port) as cold:
        clients = {WARM: warm, COLD: cold}
        for client in (cold, warm, warm):
            before = servers[WARM].metrics()
            for call in calls:
                await whole_latency(client, call)
        http_batches, mean_tokens = servers[WARM].batches_since(before)
        budget = int(SLACK * mean_tokens)
        with BareProcess(arguments.bundle, described["precision"], [layout]) as bare:
            n_batches = 0
            for number in tqdm(range(rounds), file=sys.stderr, desc="rounds"):
                row = number % n_requests
                n_batches += bare.prepare(Work([requests[row : row + 1]], budget))
                order = list(taken) if number // n_requests % 2 else list(taken)[::-1]
                for name in order:
                    await asyncio.sleep(QUIET_S)
                    if name in clients:
                        with cost.measured():
                            taken[name].append(await whole_latency(clients[name], calls[row]))
                    else:
                        taken[name].append(bare.run(layout, budget))
    ms = {name: 1000 * np.array(values) for name, values in taken.items()}
    return {
        **{f"added_ms_median_{n}": asdict(figure(ms[n] - ms["bare"], at_most=BOUND_MS)) for n in servers},
        **{f"added_ms_p99_{n}": asdict(figure(ms[n] - ms["bare"], statistic=p99)) for n in servers},
        "aa_bare_minus_bare_ms": asdict(figure(ms["bare_again"] - ms["bare"])),
        **{f"latency_ms_median_{name}": asdict(figure(values)) for name, values in ms.items()},
        "client_share_of_cores": cost.share,
        "rounds": rounds,
        "items": arguments.items,
        "requests": n_requests,
        "http_batches_a_call": http_batches / n_requests,
        "bare_batches_a_call": n_batches / rounds,
        "token_budget": budget,
    }


def main(argv: list[str]) -> int:
    """Measure and write results/http_idle.json."""
    parser = options(__doc__, "http_idle")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--requests", type=int, default=20, help="different calls, made in turn")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder that keeps the bundle made")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.requests = 4, 2
    if arguments.bundle is None:
        # Only making a bundle needs torch; loading it takes seconds and memory.
        from benchmarks.two_layer import two_layer_bundle

        arguments.bundle = two_layer_bundle(arguments.work)
    servers = {
        WARM: Server(arguments.bundle, pair_cache_bytes=0),
        COLD: Server(arguments.bundle, pair_cache_bytes=0, item_cache_entries=0),
    }
    with running(list(servers.values())):
        described = servers[WARM].description()
        figures = asyncio.run(measure(arguments, servers))
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
