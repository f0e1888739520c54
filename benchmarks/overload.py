"""Twice the measured capacity for a minute: what share of capacity still comes back before its deadline.

A block is: capacity by a closed loop, a minute of Poisson arrivals at twice that, capacity again; goodput is scored
pairs answered within the deadline a second of arrivals, over the mean of both capacities. The deadline of a call is
four times the idle latency of a call of its size, told to the server (`--margin-ms` earlier, if the caller allows for
the way back) and held against the scheduled time. Three arms take turns: calls of 50 items, calls of mixed sizes, and
calls of 50 items on the same service with one admission permit a text. The pair cache is off.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.load import Call, Client, ClientCost, Reply, connected, poisson_times, score_call
from benchmarks.measure import figure, options, p99, requests_of, write_report
from benchmarks.servers import Server, running

BOUND = 0.90
OVERLOAD = 2.0
DEADLINES = 4.0
CONNECTIONS = 8
MIX = {50: 0.80, 200: 0.15, 1000: 0.05}
N_CALLS = 200


@dataclass(frozen=True, slots=True)
class Block:
    """One minute of overload between two measurements of capacity; pairs a second."""

    capacity: float
    seconds: float
    offered: float
    goodput: float
    codes: Counter[int]
    in_time_items: int
    """Scored within their deadline, after the minute too."""
    answered_items: int
    """Of calls answered 200."""
    without_retry_after: int
    late_s: tuple[float, ...]
    """Of each answer 200: seconds after its deadline, negative before."""


class Arm:
    """Calls of some sizes on one server."""

    def __init__(self, server: Server, sizes: Sequence[int]) -> None:
        self.server = server
        self.sizes = sizes
        self.blocks: list[Block] = []
        self.idle_ms: dict[int, float] = {}
        self._plain: list[Call] = []
        self._calls: list[Call] = []

    async def prepare(self, client: Client, arguments: Namespace) -> None:
        """Measure the idle latency of each size, and make the calls with their deadlines."""
        requests = requests_of(arguments.data, self.sizes, seed=3)
        self._plain = [score_call(query, titles) for query, titles in requests]
        for size in sorted(set(self.sizes)):
            n_calls = 2 if arguments.quick else max(2, 500 // size)
            calls = [call for call in self._plain if call.n_items == size][:n_calls]
            replies = [await client.call(call) for call in (calls[0], *calls, *calls)]
            self.idle_ms[size] = 1000 * float(np.median([reply.latency_s for reply in replies[1:]]))
        limit_s = {size: DEADLINES * ms / 1000 for size, ms in self.idle_ms.items()}
        margin_s = arguments.margin_ms / 1000
        self._calls = [
            score_call(query, titles, deadline_s=limit_s[len(titles)], margin_s=margin_s) for query, titles in requests
        ]

    async def run_block(self, client: Client, arguments: Namespace, rng: np.random.Generator) -> None:
        """Measure capacity, overload the server, measure capacity again."""
        phase = {"seconds": arguments.capacity_s, "connections": CONNECTIONS}
        before = await client.capacity(self._plain, **phase)
        rate = OVERLOAD * before / float(np.mean(self.sizes))
        times = poisson_times(rate, arguments.block_s, rng)
        calls = [self._calls[i] for i in rng.integers(0, len(self._calls), len(times)).tolist()]
        replies = await client.open_model(calls, times)
        after = await client.capacity(self._plain, **phase)
        capacity = (before + after) / 2
        self.blocks.append(block_of(replies, times, capacity=capacity, seconds=arguments.block_s))

    def figures(self, *, bounded: bool) -> dict[str, Any]:
        """Give the figures of this arm."""
        codes: Counter[int] = Counter()
        for block in self.blocks:
            codes += block.codes
        late = np.concatenate([block.late_s for block in self.blocks])
        return {
            "goodput_over_capacity": asdict(
                figure([b.goodput / b.capacity for b in self.blocks], at_least=BOUND if bounded else None)
            ),
            "items_of_answers_200_scored_in_time": sum(b.in_time_items for b in self.blocks)
            / max(1, sum(b.answered_items for b in self.blocks)),
            "offered_over_capacity": asdict(figure([b.offered / b.capacity for b in self.blocks])),
            "capacity_pairs_per_s": asdict(figure([b.capacity for b in self.blocks])),
            "answers": {str(code): count for code, count in sorted(codes.items())},
            "5xx_or_none": sum(count for code, count in codes.items() if code >= 500 or code == 0),
            "429_without_retry_after": sum(block.without_retry_after for block in self.blocks),
            "answers_200_late": float((late > 0).mean()) if len(late) else None,
            "answers_200_ms_after_deadline_p99": 1000 * float(p99(late)) if len(late) else None,
            "idle_latency_ms": self.idle_ms,
            "deadline_ms": {size: DEADLINES * ms for size, ms in self.idle_ms.items()},
        }


def block_of(replies: Sequence[Reply], times: NDArray[np.float64], *, capacity: float, seconds: float) -> Block:
    """Count the answers of one minute.

    Answers that came when it was over are no goodput: they were computed when nothing else was offered.

    Args: times: at which the calls were due, in seconds from its beginning.
    """
    answered = [reply for reply in replies if reply.status == 200]
    return Block(
        capacity=capacity,
        seconds=seconds,
        offered=sum(reply.call.n_items for reply in replies) / seconds,
        goodput=sum(
            reply.pairs_in_time
            for reply, at in zip(replies, times.tolist(), strict=True)
            if at + reply.latency_s <= seconds
        )
        / seconds,
        codes=Counter(reply.status for reply in replies),
        in_time_items=sum(reply.pairs_in_time for reply in replies),
        answered_items=sum(reply.call.n_items for reply in answered),
        without_retry_after=sum(reply.status == 429 and not reply.retry_after for reply in replies),
        late_s=tuple(reply.latency_s - (reply.call.deadline_s or 0.0) for reply in answered),
    )


async def measure(arguments: Namespace, arms: dict[str, Arm]) -> dict[str, Any]:
    """Let the arms take turns."""
    rng = np.random.default_rng(0)
    cost = ClientCost()
    for arm in arms.values():
        async with connected(arm.server.port) as client:
            await arm.prepare(client, arguments)
    for number in tqdm(range(arguments.blocks), file=sys.stderr, desc="blocks"):
        for name in list(arms) if number % 2 else list(arms)[::-1]:
            async with connected(arms[name].server.port) as client:
                with cost.measured():
                    await arms[name].run_block(client, arguments, rng)
    return {
        **{name: arm.figures(bounded=name != "permits_50_items") for name, arm in arms.items()},
        "client_share_of_cores": cost.share,
        "overload": OVERLOAD,
        "mix": {str(size): share for size, share in MIX.items()},
        "margin_ms": arguments.margin_ms,
        "blocks": arguments.blocks,
        "block_s": arguments.block_s,
        "capacity_s": arguments.capacity_s,
    }


def main(argv: list[str]) -> int:
    """Measure and write results/overload.json."""
    parser = options(__doc__, "overload")
    parser.add_argument("--blocks", type=int, default=6, help="of each arm")
    parser.add_argument("--block-s", type=float, default=60)
    parser.add_argument("--capacity-s", type=float, default=10)
    parser.add_argument("--margin-ms", type=float, default=0, help="by which the server is told an earlier deadline")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.blocks, arguments.block_s, arguments.capacity_s = 1, 0.5, 0.2
    mix = {size // 10: share for size, share in MIX.items()} if arguments.quick else MIX
    in_order = [size for size, share in mix.items() for _ in range(round(share * N_CALLS))]
    mixed = np.random.default_rng(0).permutation(in_order).tolist()
    ours = Server(arguments.bundle, pair_cache_bytes=0)
    permits = Server(arguments.bundle, module="benchmarks.permit_server", pair_cache_bytes=0)
    arms = {
        "ours_50_items": Arm(ours, [50] * N_CALLS),
        "ours_mixed_items": Arm(ours, mixed),
        "permits_50_items": Arm(permits, [50] * N_CALLS),
    }
    with running([ours, permits]):
        described = ours.description()
        figures = asyncio.run(measure(arguments, arms))
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
