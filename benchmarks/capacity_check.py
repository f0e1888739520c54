"""The simulation behind `relevance capacity` against two real replicas: latency, refusals and partial answers.

A batch of the bundle's session is measured and fitted (milliseconds a batch, tokens a second), and two servers start
whose sessions sleep just that, for two that compute would share the cores with each other and with the load. What a
batch and a call cost beside the session is measured on one of them, saturated and then idle. Then Poisson arrivals of
mixed sizes are spread over both, in turn or to the one with fewest calls under way, at several shares of their
capacity, and the same arrivals are simulated. Figures are measured / simulated; an interval resamples blocks.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.load import Call, Client, ClientCost, Reply, connected, poisson_times, score_call, until
from benchmarks.measure import block_ratio, figure, options, p99, requests_of, write_report
from benchmarks.servers import Server, running
from benchmarks.sleeping_server import FIXED_MS, TOKENS_PER_S
from relevance.pairs import Item
from service.capacity_replica import ReplicaSpec
from service.capacity_simulation import OUTCOMES, Balancer, Demand, simulate
from service.model import Model, load_model
from service.settings import load_settings

REPLICAS = 2
MIX = {10: 0.80, 40: 0.15, 200: 0.05}
N_CALLS = 400
BALANCERS: tuple[Balancer, ...] = tuple(b for b in get_args(Balancer) if b != "random")
_FIT_TOKENS = (64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class Calls:
    """What is asked.

    Args: hurried, patient: each call with the deadline and without; items_C: its pairs; lengths: their tokens, sorted.
    """

    hurried: list[Call]
    patient: list[Call]
    items_C: NDArray[np.int64]
    lengths: list[list[int]]


@dataclass(slots=True)
class Arm:
    """One rate with one balancer: a list of each, one value or array a block."""

    load: float
    balancer: Balancer
    measured_s: list[NDArray[np.float64]] = field(default_factory=list)
    simulated_s: list[NDArray[np.float64]] = field(default_factory=list)
    measured_shares: list[list[float]] = field(default_factory=list)
    simulated_shares: list[list[float]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Give measured over simulated latency, and both shares of each outcome."""
        both = {"measured": self.measured_s, "simulated": self.simulated_s}
        ms = {
            name: {which: 1000 * float(statistic(np.concatenate(blocks))) for which, blocks in both.items()}
            for name, statistic in (("p50", np.median), ("p99", p99))
        }
        p50, high = (
            block_ratio(self.measured_s, self.simulated_s, statistic=statistic) for statistic in (np.median, p99)
        )
        shares = np.asarray(self.measured_shares), np.asarray(self.simulated_shares)
        return {
            "p50_measured_over_simulated": asdict(p50),
            "p99_measured_over_simulated": asdict(high),
            "latency_ms": ms,
            "calls": sum(map(len, self.measured_s)),
            "shares": {
                name: {"measured": float(shares[0][:, i].mean()), "simulated": float(shares[1][:, i].mean())}
                for i, name in enumerate(OUTCOMES)
            },
            "unserved_measured_minus_simulated": asdict(figure(shares[1][:, 0] - shares[0][:, 0], statistic=np.mean)),
        }


class Balanced(Client):
    """A client of several servers that sends each call to one of them."""

    def __init__(self, clients: Sequence[Client], balancer: Balancer) -> None:
        self._clients, self._balancer = clients, balancer
        self._under_way = [0] * len(clients)
        self._number = itertools.count()

    async def call(self, call: Call, scheduled: float | None = None, give_up: float | None = None) -> Reply:
        """Make one call to the server whose turn it is, or to the one with fewest calls under way."""
        n, number = len(self._clients), next(self._number)
        in_turn = sorted(range(n), key=lambda i: (i - number) % n)
        chosen = in_turn[0] if self._balancer == "round_robin" else min(in_turn, key=self._under_way.__getitem__)
        self._under_way[chosen] += 1
        try:
            return await self._clients[chosen].call(call, scheduled, give_up)
        finally:
            self._under_way[chosen] -= 1


def fit(model: Model, rounds: int) -> ReplicaSpec:
    """Measure batches of a few sizes in turn, and give the line through their medians."""
    prepared = model.scorer.prepare("steel kettle", [Item("steel kettle 2 l")] * 512)
    length = int(prepared.length_B[0])
    batches = [model.scorer.batch(prepared, np.arange(max(1, tokens // length))) for tokens in _FIT_TOKENS]
    seconds: list[list[float]] = [[] for _ in batches]
    for _ in range(rounds):
        for batch, times in zip(batches, seconds, strict=True):
            started = perf_counter()
            model.session.run(batch)
            times.append(perf_counter() - started)
    sizes = [batch.input_ids_BL.size for batch in batches]
    per_token_s, fixed_s = np.polyfit(sizes, [float(np.median(times)) for times in seconds], 1)
    return ReplicaSpec(1 / max(1e-7, float(per_token_s)), fixed_s=max(0.0, float(fixed_s)))


def calls_of(model: Model, arguments: Namespace) -> Calls:
    """Make calls of the sizes of the mix, and tokenise their pairs as the service will."""
    sizes = np.random.default_rng(0).permutation([s for s, share in MIX.items() for _ in range(round(share * N_CALLS))])
    requests = requests_of(arguments.data, sizes.tolist(), seed=5)
    lengths = [
        sorted(model.scorer.prepare(query, [Item(title) for title in titles], locale="us").length_B.tolist())
        for query, titles in requests
    ]
    deadline_s = arguments.deadline_ms / 1000
    patient = [score_call(query, titles) for query, titles in requests]
    hurried = [score_call(query, titles, deadline_s=deadline_s) for query, titles in requests]
    return Calls(hurried, patient, sizes.astype(np.int64), lengths)


def demand_of(calls: Calls, chosen: NDArray[np.int64], times: NDArray[np.float64], deadline_s: float) -> Demand:
    """Give some calls at some times as the simulation wants them."""
    return Demand(times, calls.items_C[chosen], [calls.lengths[i] for i in chosen.tolist()], deadline_s)


async def calibrate(server: Server, calls: Calls, slept: ReplicaSpec, arguments: Namespace) -> ReplicaSpec:
    """Measure what the sleep does not hold: the time between batches when saturated, and beside them in idle calls."""
    async with connected(server.port) as client:
        await client.closed_loop(calls.patient[:8], connections=4)
        before, began = server.metrics(), perf_counter()
        give_up = began + arguments.calibration_s
        await client.closed_loop(until(give_up, itertools.cycle(calls.patient)), connections=8)
        wall_s, after = perf_counter() - began, server.metrics()
        n_batches = after.since(before, "relevance_batch_tokens_count")
        gap_s = max(0.0, (wall_s - after.since(before, "relevance_engine_busy_seconds_total")) / n_batches)
        spec = replace(slept, fixed_s=slept.fixed_s + gap_s)
        beside_s = {}
        for size in (min(MIX), max(MIX)):
            chosen = np.flatnonzero(calls.items_C == size)[: arguments.idle_calls]
            idle = [(await client.call(calls.patient[i])).latency_s for i in chosen.tolist()]
            alone = demand_of(calls, chosen, 1000.0 * np.arange(len(chosen)), 1000.0)
            beside_s[size] = float(np.median(idle) - np.median(simulate(alone, spec, replicas=1).latency_s_R))
    small, large = sorted(beside_s)
    pair_s = max(0.0, (beside_s[large] - beside_s[small]) / (large - small))
    return replace(spec, call_s=max(0.0, beside_s[small] - small * pair_s), pair_s=pair_s)


async def run_block(arm: Arm, calls: Calls, spec: ReplicaSpec, client: Client, arguments: Namespace, seed: int) -> None:
    """Let a block of arrivals come to the real replicas and to the simulated ones."""
    rng = np.random.default_rng(seed)
    mean_tokens = float(np.mean([sum(lengths) for lengths in calls.lengths]))
    rate = arm.load * REPLICAS * spec.tokens_per_s / mean_tokens
    times = poisson_times(rate, arguments.block_s, rng)
    chosen = rng.integers(0, len(calls.hurried), len(times))
    replies = await client.open_model([calls.hurried[i] for i in chosen.tolist()], times)
    demand = demand_of(calls, chosen, times, arguments.deadline_ms / 1000)
    simulated = simulate(demand, spec, replicas=REPLICAS, balancer=arm.balancer)
    arm.measured_s.append(np.asarray([reply.latency_s for reply in replies if reply.status == 200]))
    arm.simulated_s.append(simulated.latency_s_R[simulated.outcome_R <= OUTCOMES.index("partial")])
    outcomes = [outcome_of(reply) for reply in replies]
    arm.measured_shares.append([outcomes.count(name) / len(outcomes) for name in OUTCOMES])
    arm.simulated_shares.append([float((simulated.outcome_R == code).mean()) for code in range(len(OUTCOMES))])


def outcome_of(reply: Reply) -> str:
    """Give what became of a call, as the simulation names it.

    Raises: RuntimeError: if it is none of that.
    """
    if reply.status == 200:
        return "complete" if reply.scored == reply.call.n_items else "partial"
    names = {504: "expired", 429: "shed"}
    if reply.status not in names:
        raise RuntimeError(f"expected an answer 200, 429 or 504, found {reply.status}")
    return names[reply.status]


async def measure(arguments: Namespace, servers: list[Server], calls: Calls, slept: ReplicaSpec) -> dict[str, Any]:
    """Calibrate, then let rates and balancers take turns, block after block."""
    cost = ClientCost()
    spec = await calibrate(servers[0], calls, slept, arguments)
    arms = [Arm(load, balancer) for load in arguments.loads for balancer in BALANCERS]
    for number in tqdm(range(arguments.blocks), file=sys.stderr, desc="blocks"):
        for arm in arms if number % 2 else arms[::-1]:
            async with connected(servers[0].port) as one, connected(servers[1].port) as other:
                with cost.measured():
                    await run_block(arm, calls, spec, Balanced([one, other], arm.balancer), arguments, number)
    return {
        **{f"{arm.balancer}_{arm.load:g}_of_capacity": arm.figures() for arm in arms},
        "slept": asdict(slept),
        "simulated_replica": asdict(spec),
        "client_share_of_cores": cost.share,
        "mix": {str(size): share for size, share in MIX.items()},
        "pair_tokens": float(np.mean(np.concatenate(calls.lengths))),
        "pair_spread": float(np.std(np.concatenate(calls.lengths)) / np.mean(np.concatenate(calls.lengths))),
        "deadline_ms": arguments.deadline_ms,
        "blocks": arguments.blocks,
        "block_s": arguments.block_s,
    }


def main(argv: list[str]) -> int:
    """Measure and write results/capacity_check.json."""
    parser = options(__doc__, "capacity_check")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.7, 0.9, 1.5], help="shares of capacity")
    parser.add_argument("--blocks", type=int, default=6, help="of each load and balancer")
    parser.add_argument("--block-s", type=float, default=20)
    parser.add_argument("--deadline-ms", type=float, default=2000)
    parser.add_argument("--tokens-per-s", type=float, help="that sessions sleep by (default: as measured)")
    parser.add_argument("--fixed-ms", type=float, help="of a batch (default: as measured)")
    arguments = parser.parse_args(argv)
    arguments.calibration_s, arguments.idle_calls = (1.0, 3) if arguments.quick else (20.0, 20)
    if arguments.quick:
        arguments.loads, arguments.blocks, arguments.block_s = [0.6, 2.0], 1, 1.5
    settings = load_settings(bundle=arguments.bundle, threads=1, engines=1)
    model = load_model(settings)
    calls, slept = calls_of(model, arguments), fit(model, 3 if arguments.quick else 30)
    if arguments.tokens_per_s is not None:
        slept = replace(slept, tokens_per_s=arguments.tokens_per_s)
    if arguments.fixed_ms is not None:
        slept = replace(slept, fixed_s=arguments.fixed_ms / 1000)
    slept = replace(slept, batch_s=settings.batch_s)
    del model
    os.environ |= {FIXED_MS: str(1000 * slept.fixed_s), TOKENS_PER_S: str(slept.tokens_per_s)}
    asleep = {"module": "benchmarks.sleeping_server", "pair_cache_bytes": 0, "threads": 1, "engines": 1}
    servers = [Server(arguments.bundle, **asleep) for _ in range(REPLICAS)]
    with running(servers):
        described = servers[0].description()
        figures = asyncio.run(measure(arguments, servers, calls, slept))
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
