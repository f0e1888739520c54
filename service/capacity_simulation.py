"""Discrete-event simulation of replicas behind a balancer: when each call of a demand would be answered.

A heap of events and no simulation library: simpy and ciw offer queues in front of servers, while here a batch holds
rows of many calls, admission looks at all of them, and a call may end before its service does, so that the whole
discipline (`capacity_replica.py`) would be ours on top of them; and the service's image would carry a package that no
request needs. Suffix: R calls of the demand.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.capacity_replica import Batch, Call, Replica, ReplicaSpec
from service.speed import AnswerTime

Balancer = Literal["random", "round_robin", "least"]
OUTCOMES = ("complete", "partial", "expired", "shed")
"""All pairs scored; some, at the deadline; none (504); refused (429)."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Calls to be answered.

    Args: at_R: seconds, ascending; items_R: pairs of each; lengths: for each call the tokens of its pairs that are not
        in the cache, ascending; deadline_s: from the arrival.
    """

    at_R: NDArray[np.float64]
    items_R: NDArray[np.int64]
    lengths: Sequence[Sequence[int]]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of the calls.

    Args: outcome_R: index into OUTCOMES; latency_s_R: NaN where refused; scored_R: pairs; busy_s: of all engines
        together; span_s: from the first arrival to the last.
    """

    outcome_R: NDArray[np.int8]
    latency_s_R: NDArray[np.float64]
    scored_R: NDArray[np.int64]
    replica_R: NDArray[np.int64]
    busy_s: float
    span_s: float


def simulate(
    demand: Demand, spec: ReplicaSpec, *, replicas: int, balancer: Balancer = "least", seed: int = 0
) -> Answered:
    """Answer a demand with some replicas, from an idle start until nothing waits."""
    return _Run(demand, spec, replicas, balancer, seed).answer()


class _Run:
    """One simulation: the clock, the events to come, and what was answered so far."""

    def __init__(self, demand: Demand, spec: ReplicaSpec, replicas: int, balancer: Balancer, seed: int) -> None:
        n = len(demand.at_R)
        self._demand, self._spec, self._balancer = demand, spec, balancer
        typical = int(np.median([lengths[len(lengths) // 2] for lengths in demand.lengths if lengths] or [1]))
        self._replicas = [Replica(spec, pair_tokens=typical) for _ in range(replicas)]
        self._random_R = np.random.default_rng(seed).integers(0, replicas, n)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._reserve = AnswerTime().reserve_s
        self._outcome_R = np.full(n, OUTCOMES.index("shed"), dtype=np.int8)
        self._latency_s_R = np.full(n, np.nan)
        self._scored_R = np.zeros(n, dtype=np.int64)
        self._replica_R = np.zeros(n, dtype=np.int64)
        self._busy_s = 0.0

    def answer(self) -> Answered:
        """Run until the last event."""
        at_R = self._demand.at_R.tolist()
        for number, now in enumerate(at_R):
            while self._events and self._events[0][0] <= now:
                self._step()
            self._arrive(number, now)
        while self._events:
            self._step()
        span_s = at_R[-1] - at_R[0] if at_R else 0.0
        return Answered(self._outcome_R, self._latency_s_R, self._scored_R, self._replica_R, self._busy_s, span_s)

    def _step(self) -> None:
        at, _, event = heapq.heappop(self._events)
        event(at)

    def _plan(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), event))

    def _arrive(self, number: int, now: float) -> None:
        demand, spec = self._demand, self._spec
        chosen = self._choose(number)
        replica = self._replicas[chosen]
        items = int(demand.items_R[number])
        deadline = now + demand.deadline_s - self._reserve(items)
        call = Call(number, list(demand.lengths[number]), deadline, chosen)
        self._replica_R[number] = chosen
        if not replica.admit(call, now):
            return
        replica.outstanding += 1
        self._plan(now + spec.call_s + items * spec.pair_s, lambda at: self._submit(call, at))
        self._plan(max(now, deadline), lambda at: self._expire(call, at))

    def _choose(self, number: int) -> int:
        n = len(self._replicas)
        if self._balancer == "random":
            return int(self._random_R[number])
        if self._balancer == "round_robin":
            return number % n
        return min(range(n), key=lambda i: (self._replicas[i].outstanding, (i - number) % n))

    def _submit(self, call: Call, now: float) -> None:
        replica = self._replicas[call.replica]
        if call.closed:
            return
        if not call.lengths:
            replica.drop(call)
            self._end(call, now)
            return
        replica.submit(call)
        while replica.idle_engines and (batch := self._take(replica, now)) is not None:
            replica.idle_engines -= 1
            self._start(replica, batch, now)

    def _take(self, replica: Replica, now: float) -> Batch | None:
        late: list[Call] = []
        batch = replica.take(now, late)
        for call in late:
            self._end(call, now)
        return batch

    def _start(self, replica: Replica, batch: Batch, now: float) -> None:
        seconds = self._spec.batch_seconds(batch.padded_tokens)
        self._busy_s += seconds
        ahead = self._take(replica, now) if self._spec.prefetch else None

        def end(at: float) -> None:
            """Hand the batch back and begin the next one."""
            for call in replica.complete(batch, seconds):
                self._end(call, at)
            following = ahead or self._take(replica, at)
            if following is None:
                replica.idle_engines += 1
            else:
                self._start(replica, following, at)

        self._plan(now + seconds, end)

    def _expire(self, call: Call, now: float) -> None:
        if not call.closed:
            self._replicas[call.replica].drop(call)
            self._end(call, now)

    def _end(self, call: Call, now: float) -> None:
        number = call.number
        self._replicas[call.replica].outstanding -= 1
        scored = int(self._demand.items_R[number]) - call.open_rows
        name = "complete" if not call.open_rows else "partial" if scored else "expired"
        self._outcome_R[number] = OUTCOMES.index(name)
        self._latency_s_R[number] = now - self._demand.at_R[number]
        self._scored_R[number] = scored
