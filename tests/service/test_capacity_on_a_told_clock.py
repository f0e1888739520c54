"""The simulation against the service's own admission, queue and flows, both on a clock that is told."""

import heapq
import itertools

import numpy as np
import pytest

from relevance.errors import OverloadError
from relevance.pairs import Item
from service.admission import Admission
from service.capacity_replica import ReplicaSpec
from service.capacity_simulation import OUTCOMES, Demand, simulate
from service.flow import Flow
from service.model import Model, load_model
from service.queueing import FairQueue
from service.scorer import Prepared
from service.settings import Settings
from service.speed import AnswerTime, Speed

SPEC = ReplicaSpec(tokens_per_s=3000, fixed_s=0.002)
START = 1000.0
"""Of the clock."""


@pytest.fixture(scope="module")
def model(tiny_bundle) -> Model:
    """The tiny bundle's model, of which only the tokenizer works here."""
    return load_model(Settings(bundle=tiny_bundle, threads=1))


class RealReplica:
    """One engine before the service's own parts; a batch takes what the specification says, by the told clock."""

    def __init__(self, model: Model, first_length: int) -> None:
        self.now = START
        self.latency_s: dict[int, float] = {}
        self.complete: set[int] = set()
        self._model = model
        self._speed = Speed("fp32")
        size = int((SPEC.batch_s - SPEC.fixed_s) * SPEC.tokens_per_s / first_length) * first_length
        self._observe(first_length, size, size, SPEC.batch_seconds(size))
        self._admission = Admission(lambda: self._speed.tokens_per_s, max_requests=1024)
        self._queue = FairQueue(batch_s=SPEC.batch_s)
        self._under_way: dict[int, tuple[float, Flow]] = {}
        self._busy = False
        self._events: list = []
        self._order = itertools.count()

    def run(self, calls: list[tuple[float, Prepared]], deadline_s: float) -> None:
        """Answer calls, each a time from the start and its prepared pairs."""
        for number, (at, prepared) in enumerate(calls):
            self._plan(START + at, lambda n=number, p=prepared: self._arrive(n, p, deadline_s))
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _plan(self, at: float, event) -> None:
        heapq.heappush(self._events, (at, next(self._order), event))

    def _observe(self, length: int, padded: int, tokens: int, seconds: float) -> None:
        self._speed.observe(length=length, padded_tokens=padded, tokens=tokens, seconds=seconds)

    def _arrive(self, number: int, prepared: Prepared, deadline_s: float) -> None:
        deadline = self.now + deadline_s - AnswerTime().reserve_s(len(prepared.item_ids))
        try:
            ticket = self._admission.admit(float(prepared.length_B.sum()), weight=1.0, deadline=deadline)
        except OverloadError:
            return
        flow = Flow(self._model.scorer, self._speed, prepared, ticket=ticket)
        self._under_way[number] = (self.now, flow)
        self._queue.submit(flow)
        self._plan(deadline, lambda: (self._queue.expire(flow), self._release()))
        self._work()

    def _work(self) -> None:
        if self._busy:
            return
        batch = self._queue.take()
        self._release()
        if batch is None:
            return
        self._busy = True
        seconds = SPEC.batch_seconds(batch.padded_tokens)

        def end() -> None:
            """Hand the batch back and go on."""
            self._observe(batch.length, batch.padded_tokens, batch.tokens, seconds)
            logits_NK = np.zeros((batch.n_rows, self._model.bundle.scheme.n_classes), dtype=np.float32)
            self._queue.complete(batch, logits_NK, seconds)
            self._release()
            self._busy = False
            self._work()

        self._plan(self.now + seconds, end)

    def _release(self) -> None:
        for number, (came, flow) in list(self._under_way.items()):
            if flow.future.done():
                self.latency_s[number] = self.now - came
                if flow.future.exception() is None and (flow.reason_B == 0).all():
                    self.complete.add(number)
                self._admission.release(flow.ticket)
                del self._under_way[number]


@pytest.mark.parametrize("load", [0.6, 0.9])
def test_each_call_is_answered_at_the_moment_at_which_the_service_would(model, load, monkeypatch):
    """Texts of many lengths, some calls refused or cut at the deadline: the same ones, to a millisecond."""
    rng = np.random.default_rng(8)
    sizes = rng.choice([10, 40, 200], 250, p=[0.8, 0.15, 0.05])
    prepared = [
        model.scorer.prepare("steel kettle", [Item("matte " * int(n)) for n in rng.geometric(0.12, size)])
        for size in sizes
    ]
    lengths = [sorted(one.length_B.tolist()) for one in prepared]
    mean_s = np.mean([sum(one) for one in lengths]) / SPEC.tokens_per_s
    at = np.cumsum(rng.exponential(mean_s / load, len(sizes)))
    real = RealReplica(model, int(np.median([one[len(one) // 2] for one in lengths])))
    for name in ("admission", "queueing", "flow"):
        monkeypatch.setattr(f"service.{name}.monotonic", lambda: real.now)

    real.run(list(zip(at.tolist(), prepared, strict=True)), deadline_s=3.0)
    simulated = simulate(Demand(at, sizes, lengths, 3.0), SPEC, replicas=1)

    answered = np.flatnonzero(~np.isnan(simulated.latency_s_R))
    assert answered.tolist() == sorted(real.latency_s)
    assert simulated.latency_s_R[answered] == pytest.approx([real.latency_s[n] for n in answered], abs=1e-3)
    assert np.flatnonzero(simulated.outcome_R == OUTCOMES.index("complete")).tolist() == sorted(real.complete)
    assert load == 0.6 or len(answered) < len(sizes)
