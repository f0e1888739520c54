"""Queries that repeat: ours with its pair cache against the better peer, on the same Zipf traffic, in turns."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bare import Requests
from benchmarks.load import connected
from benchmarks.measure import figure, requests_of
from benchmarks.peers.arms import Arm
from benchmarks.peers.workloads import cleaned, saturated
from benchmarks.zipf import HITS, MISSES, zipf_rows

LEAST_RATIO = 3.0
LAW = 1.0


@dataclass(frozen=True, slots=True)
class Repeats:
    """How much traffic; the law is that of `benchmarks.zipf`.

    Args: queries: distinct; items: of each; warm: requests that fill the cache; chunks, chunk: turns, and requests in
        each.
    """

    queries: int = 500
    items: int = 50
    warm: int = 400
    chunks: int = 6
    chunk: int = 24


QUICK = Repeats(queries=8, items=4, warm=6, chunks=2, chunk=4)


async def measure_repeats(ours: Arm, peer: Arm, data: Path | None, repeats: Repeats) -> dict[str, Any]:
    """Give the ratio of pairs a second of each chunk, after the cache has seen some traffic."""
    requests = cleaned(requests_of(data, [repeats.items] * repeats.queries, seed=4))
    rows = zipf_rows(repeats.queries, LAW, repeats.warm + repeats.chunks * repeats.chunk, np.random.default_rng(0))
    with replace(ours, cached=True).started() as cached, peer.started() as plain:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(r.process.port)) for r in (cached, plain)]
            await saturated(clients[0], ours, _chosen(requests, rows[: repeats.warm]))
            before = cached.ours.metrics() if cached.ours else None
            ratios = []
            for number, chunk in enumerate(np.split(rows[repeats.warm :], repeats.chunks)):
                rates = [0.0, 0.0]
                for side in (0, 1) if number % 2 else (1, 0):
                    rates[side] = await saturated(clients[side], (ours, peer)[side], _chosen(requests, chunk))
                ratios.append(rates[0] / rates[1])
        hits, misses = (
            cached.ours.metrics().since(before, name, tier="local") if cached.ours and before else 0.0
            for name in (HITS, MISSES)
        )
    return {
        "ours_over_better_peer": asdict(figure(ratios, at_least=LEAST_RATIO)),
        "better_peer": peer.name,
        "hit_rate": hits / max(1.0, hits + misses),
        "law": LAW,
        **asdict(repeats),
    }


def _chosen(requests: Requests, rows: NDArray[np.int64]) -> Requests:
    return [requests[row] for row in rows.tolist()]
