"""Load on a server: cheap clients over keep-alive connections, closed loop for saturation, open model for the rest.

Bodies are made beforehand, answers are searched and not parsed: client and server share the cores. In the open model a
call has a scheduled time, and its latency counts from there, however late the client or a connection was.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers import cores

ANSWER_TIMEOUT_S = 120
_IDLE_S = 3
"""Connections idle for longer are not used again: the server closes them after a few seconds."""
_BUFFER_BYTES = 2**20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SCORED = re.compile(rb'"scored":(\d+)')
_RERANKED = b'"relevance_score":'


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be sent.

    Args: kind: what the report counts it as; deadline_s: after which its answer is worth nothing; answer: whose shape
        it has, our `/score` or the `/rerank` of other servers.
    """

    payload: bytes
    n_items: int
    kind: str = ""
    deadline_s: float | None = None
    answer: Literal["score", "rerank"] = "score"

    def scored(self, body: bytes) -> int:
        """Give the scored pairs of an answer 200, by searching it."""
        if self.answer == "rerank":
            return body.count(_RERANKED)
        found = _SCORED.search(body)
        return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a call; times on the `perf_counter` clock, status 0 = no answer."""

    call: Call
    scheduled: float
    sent: float
    done: float
    status: int
    scored: int
    retry_after: bool

    @property
    def latency_s(self) -> float:
        """Seconds from the scheduled time to the last byte."""
        return self.done - self.scheduled

    @property
    def pairs_in_time(self) -> int:
        """Scored pairs that came before the deadline."""
        late = self.call.deadline_s is not None and self.latency_s > self.call.deadline_s
        return 0 if late or self.status != 200 else self.scored


def http_post(body: bytes, path: str = "/score") -> bytes:
    """Give the bytes of a POST with this body."""
    kind = "Content-Type: application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def score_call(
    query: str,
    titles: Sequence[str],
    *,
    kind: str = "",
    deadline_s: float | None = None,
    margin_s: float = 0.0,
    explain: bool = False,
) -> Call:
    """Prepare a `/score` call; a deadline is also told to the server.

    Args: margin_s: told so much earlier, as by a caller that allows for the way back; explain: ask for explanations.
    """
    asked: dict[str, object] = {
        "query": query,
        "locale": "us",
        "items": [{"id": i, "title": title} for i, title in enumerate(titles)],
    }
    if explain:
        asked["explain"] = True
    if deadline_s is not None:
        asked["deadline_ms"] = max(1, round((deadline_s - margin_s) * 1000))
    return Call(http_post(json.dumps(asked, ensure_ascii=False).encode()), len(titles), kind, deadline_s)


def rerank_call(query: str, titles: Sequence[str], *, deadline_s: float | None = None) -> Call:
    """Prepare a call of another server's `/rerank`, which knows no deadline: it is only held against the answer."""
    asked = {"query": query, "documents": list(titles), "return_documents": False}
    payload = http_post(json.dumps(asked, ensure_ascii=False).encode(), "/rerank")
    return Call(payload, len(titles), deadline_s=deadline_s, answer="rerank")


def poisson_times(rate: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Give the arrival times of a Poisson process in [0, seconds)."""
    gaps = rng.exponential(1 / rate, max(16, int(2 * rate * seconds) + 32))
    times = np.cumsum(gaps)
    return np.asarray(times[times < seconds])


def until(give_up: float, calls: Iterable[Call]) -> Iterator[Call]:
    """Give calls until a time of the `perf_counter` clock."""
    for call in calls:
        if perf_counter() >= give_up:
            return
        yield call


@dataclass(slots=True)
class ClientCost:
    """CPU time of this process while it makes load, as a share of all cores."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count what runs inside."""
        cpu, wall = time.process_time(), perf_counter()
        try:
            yield
        finally:
            self.cpu_s += time.process_time() - cpu
            self.wall_s += perf_counter() - wall

    @property
    def share(self) -> float:
        """CPU seconds over the core seconds that passed."""
        return self.cpu_s / (self.wall_s * cores()) if self.wall_s else 0.0


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: float = field(default_factory=time.monotonic)

    async def exchange(self, payload: bytes) -> tuple[int, bytes, bytes]:
        self.writer.write(payload)
        await self.writer.drain()
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await self.reader.readexactly(int(length[1]) if length else 0)
        self.used = time.monotonic()
        return int(head[9:12]), head, body


class Client:
    """Calls one server over a pool of keep-alive connections; made by `connected`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []

    async def call(self, call: Call, scheduled: float | None = None, give_up: float | None = None) -> Reply:
        """Make one call; an answer that does not come is a reply of status 0.

        Args: scheduled, give_up: on the `perf_counter` clock; by default now, and after `ANSWER_TIMEOUT_S`.
        """
        sent = perf_counter()
        began = sent if scheduled is None else scheduled
        connection = None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S if give_up is None else max(0.0, give_up - sent)):
                connection = await self._connection()
                status, head, body = await connection.exchange(call.payload)
        except (OSError, EOFError, TimeoutError):
            if connection is not None:
                connection.writer.close()
            return Reply(call, began, sent, perf_counter(), 0, 0, False)
        done = perf_counter()
        self._keep(connection, head)
        scored = call.scored(body) if status == 200 else 0
        return Reply(call, began, sent, done, status, scored, b"\r\nretry-after:" in head.lower())

    async def abandon(self, call: Call, after_s: float) -> None:
        """Send a call and close the connection without reading the answer."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(call.payload)
        await asyncio.sleep(after_s)
        writer.transport.abort()

    async def closed_loop(self, calls: Iterable[Call], *, connections: int) -> list[Reply]:
        """Make the calls, so many at a time, the next as soon as one is answered."""
        replies: list[Reply] = []
        waiting = iter(calls)

        async def worker() -> None:
            """Call until nothing waits."""
            for call in waiting:
                replies.append(await self.call(call))

        await asyncio.gather(*(worker() for _ in range(connections)))
        return replies

    async def capacity(self, calls: Iterable[Call], *, seconds: float, connections: int) -> float:
        """Give the scored pairs a second of a closed loop that repeats these calls for some seconds."""
        began = perf_counter()
        replies = await self.closed_loop(until(began + seconds, itertools.cycle(calls)), connections=connections)
        return sum(reply.scored for reply in replies) / (perf_counter() - began)

    async def open_model(
        self, calls: Sequence[Call], times: Sequence[float] | NDArray[np.float64], *, wait_s: float | None = None
    ) -> list[Reply]:
        """Make each call at its time from now on, whatever became of the others; waits for all answers.

        Args: wait_s: after the last call's time nothing is waited for any longer than this.
        """
        started = perf_counter()
        at_s = np.asarray(times).tolist()
        give_up = None if wait_s is None else started + max(at_s, default=0.0) + wait_s
        tasks = []
        for call, at in zip(calls, at_s, strict=True):
            delay = started + at - perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(self.call(call, started + at, give_up)))
        return list(await asyncio.gather(*tasks))

    async def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.writer.close()
        await asyncio.gather(*(c.writer.wait_closed() for c in self._idle), return_exceptions=True)
        self._idle.clear()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.used < _IDLE_S and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_BUFFER_BYTES)
        return _Connection(reader, writer)

    def _keep(self, connection: _Connection, head: bytes) -> None:
        if b"\r\nconnection: close" in head.lower():
            connection.writer.close()
        else:
            self._idle.append(connection)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """Give a client of a server; its connections are closed at the end."""
    client = Client(port)
    try:
        yield client
    finally:
        await client.close()


async def whole_latency(client: Client, call: Call) -> float:
    """Give the seconds that a call took whose pairs were all scored; ends the program at any other."""
    reply = await client.call(call)
    if reply.status != 200 or reply.scored != call.n_items:
        raise SystemExit(f"expected {call.n_items} scored pairs, found status {reply.status} and {reply.scored}")
    return reply.latency_s
