"""The batcher: admission, deadlines, cancellation, failures, caching: exactly one answer each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from threading import Event
from time import monotonic

import pytest

from relevance.errors import DeadlineError, EngineError, NotReadyError, OverloadError, QueryTooLongError
from relevance.pairs import Item
from service.admission import CostEstimator
from service.batcher import Batcher, BatcherOptions, Work
from service.engines import EngineOptions
from service.model import Model
from service.pair_cache import PairCache
from service.scorer import REASONS, Scorer
from service.speed import Speed
from service.telemetry import Telemetry


class _Gate:
    """A session that waits for `open` before each batch, fails while `broken`, and counts rows."""

    def __init__(self, session) -> None:
        self.session, self.open, self.entered, self.broken = session, Event(), Event(), False
        self.rows = self.runs = 0

    def run(self, batch):
        """Wait, then run or raise."""
        self.entered.set()
        self.open.wait(30)
        self.runs += 1
        self.rows += len(batch.input_ids_BL)
        if self.broken:
            raise RuntimeError("device lost")
        return self.session.run(batch)


def _work(n: int = 2, *, seconds: float = 30, query: str = "kettle", on_overload="reject") -> Work:
    items = [Item(f"steel kettle {i}") for i in range(n)]
    return Work(query, items, None, None, monotonic() + seconds, on_overload)


def gated(model: Model, gate: _Gate, *, tokens_per_s: float = 1000) -> Model:
    """The model over a gated session, believed to be of some speed."""
    speed = Speed("fp32")
    speed.observe(length=16, padded_tokens=100, tokens=100, seconds=100 / tokens_per_s)
    limits = model.bundle.manifest.limits
    return replace(
        model,
        scorer=Scorer(model.bundle, gate),
        speed=speed,
        costs=CostEstimator(max_pair_tokens=limits.max_pair_tokens),
    )


@pytest.fixture
def gate(model: Model):
    """A gated session, closed."""
    return _Gate(model.session)


@pytest.fixture
def lost():
    """Reasons for which the process would have ended."""
    return []


@pytest.fixture
def batcher(model: Model, gate, lost):
    """A batcher over the gated session, of 1,000 tokens a second."""
    batcher = Batcher(gated(model, gate), Telemetry(), BatcherOptions(), on_fatal=lost.append)
    yield batcher
    gate.open.set()
    batcher.close()


@pytest.fixture
def caching(model: Model, gate):
    """The same with a pair cache."""
    batcher = Batcher(gated(model, gate), Telemetry(), BatcherOptions(), caches=(PairCache(10**6), None))
    yield batcher
    gate.open.set()
    batcher.close()


def _counted(batcher: Batcher, name: str, **labels: str) -> float:
    return batcher._telemetry.registry.get_sample_value(name, labels) or 0.0


async def _until(event: Event) -> None:
    await asyncio.to_thread(event.wait, 30)


def _wait_for(lost: list[str]) -> None:
    give_up = monotonic() + 30
    while not lost and monotonic() < give_up:
        Event().wait(0.01)


def test_many_callers_at_once_each_get_their_own_answer(model: Model):
    """40 concurrent requests of different queries: each answer equals the scorer's own for that query."""
    batcher = Batcher(model, Telemetry(), BatcherOptions(engines=EngineOptions(count=2)))
    works = [_work(1 + i % 5, query=f"kettle {i}") for i in range(40)]

    async def ask():
        return await asyncio.gather(*(batcher.score(work) for work in works))

    answers = asyncio.run(ask())
    batcher.close()

    for work, answer in zip(works, answers, strict=True):
        expected = model.scorer.score(work.query, work.items)
        assert pytest.approx(expected.score_B, abs=1e-4) == answer.scored.score_B


def test_costs_are_not_learnt_from_items_that_were_cut(batcher, gate):
    """What a text of 2,000 characters costs, 96 tokens, tells nothing of a short one."""
    gate.open.set()
    short = batcher.model.scorer.texts("kettle", [Item("steel kettle")] * 50, locale=None)
    before = batcher.model.costs.tokens(short)
    documents = [Item("steel kettle " * 150)] * 50
    asyncio.run(batcher.score(replace(_work(50), items=documents)))
    assert batcher.model.costs.tokens(short) == before
    asyncio.run(batcher.score(_work(50)))
    assert batcher.model.costs.tokens(short) != before


def test_a_prefetching_engine_gives_the_same_answers(model: Model):
    """Batches assembled while the one before runs: same scores, each request once."""
    batcher = Batcher(model, Telemetry(), BatcherOptions(batch_s=0.001, engines=EngineOptions(prefetch=True)))
    works = [_work(9, query=f"kettle {i}") for i in range(12)]

    async def ask():
        return await asyncio.gather(*(batcher.score(work) for work in works))

    answers = asyncio.run(ask())
    batcher.close()

    for work, answer in zip(works, answers, strict=True):
        expected = model.scorer.score(work.query, work.items)
        assert pytest.approx(expected.score_B, abs=1e-4) == answer.scored.score_B


def test_work_that_would_be_late_is_shed_with_a_wait_and_never_run(batcher: Batcher, gate: _Gate):
    """1,000 tokens/s: some 300 tokens wait, so 0.2 s is too short for 20 more pairs; not one of them is computed."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(40)))
        await _until(gate.entered)
        with pytest.raises(OverloadError) as shed:
            await batcher.score(_work(20, seconds=0.2))
        fits = asyncio.create_task(batcher.score(_work(2)))
        gate.open.set()
        return shed.value, await first, await fits

    shed, first, fits = asyncio.run(ask())

    assert 0 < shed.wait_s < 10
    assert (len(first.scored.tier_B), len(fits.scored.tier_B), gate.rows) == (40, 2, 42)


def test_work_that_would_make_admitted_work_late_is_shed(batcher: Batcher, gate: _Gate):
    """The first has just time enough; a second as large with plenty of time would take half the engine from it."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(40, seconds=0.5)))
        await _until(gate.entered)
        with pytest.raises(OverloadError):
            await batcher.score(_work(40, seconds=60))
        gate.open.set()
        return await first

    assert len(asyncio.run(ask()).scored.tier_B) == 40


def test_shed_work_that_asked_for_partial_comes_back_unscored(batcher: Batcher, gate: _Gate):
    """`on_overload: partial` gives every row the reason overload instead of an error."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(40)))
        await _until(gate.entered)
        answer = await batcher.score(_work(20, seconds=0.2, on_overload="partial"))
        gate.open.set()
        await first
        return answer

    answer = asyncio.run(ask())

    assert [1 + REASONS.index("overload")] * 20 == answer.scored.reason_B.tolist()
    assert answer.scored.kept_B.all()


def test_work_that_waited_past_its_deadline_is_refused_at_the_deadline_and_never_run(batcher: Batcher, gate: _Gate):
    """Behind a closed gate 50 ms pass: the error comes while the gate is still closed, and the rows are not run."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(2)))
        await _until(gate.entered)
        with pytest.raises(DeadlineError, match="2 items unscored"):
            await batcher.score(_work(2, seconds=0.05))
        was_open = gate.open.is_set()
        gate.open.set()
        await first
        return was_open

    assert asyncio.run(ask()) is False
    assert gate.rows == 2
    assert _counted(batcher, "relevance_pairs_total", outcome="expired") == 2


def test_cancelled_work_is_dropped_and_counted(batcher: Batcher, gate: _Gate):
    """A caller that goes away while it waits: its rows are never run, its room is free, its pairs are counted."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(2)))
        await _until(gate.entered)
        leaving = asyncio.create_task(batcher.score(_work(30)))
        while batcher.admission.n_requests < 2:
            await asyncio.sleep(0.001)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.open.set()
        return await first

    asyncio.run(ask())

    assert (gate.rows, batcher.admission.n_requests) == (2, 0)
    assert _counted(batcher, "relevance_pairs_total", outcome="cancelled") == 30


def test_a_pair_asked_for_twice_at_once_is_run_once(caching: Batcher, gate: _Gate):
    """Two requests share 5 of 7 and 5 of 5 pairs, one of them within itself: 7 rows run, both answered alike."""

    async def ask():
        both = [asyncio.create_task(caching.score(_work(n))) for n in (7, 5)]
        while caching.admission.n_requests < 2 or len(caching.queue._live) < 2:
            await asyncio.sleep(0.001)
        gate.open.set()
        return await asyncio.gather(*both)

    first, second = asyncio.run(ask())

    assert gate.rows == 7
    assert second.scored.score_B.tolist() == first.scored.score_B[:5].tolist()
    assert sorted([first.scored.cached_B.sum(), second.scored.cached_B.sum()]) in ([0, 5], [2, 3], [1, 4])


def test_when_the_first_to_ask_for_a_pair_leaves_the_next_one_gets_it(caching: Batcher, gate: _Gate):
    """The leader is cancelled before its rows run: the follower's rows are run instead, once."""

    async def ask():
        busy = asyncio.create_task(caching.score(_work(1, query="lamp")))
        await _until(gate.entered)
        leader = asyncio.create_task(caching.score(_work(6)))
        while len(caching.queue._leaders) < 7:
            await asyncio.sleep(0.001)
        follower = asyncio.create_task(caching.score(_work(6)))
        while caching.admission.n_requests < 3 or len(caching.queue._live) < 3:
            await asyncio.sleep(0.001)
        leader.cancel()
        await asyncio.wait([leader])
        gate.open.set()
        return await busy, await follower

    _, follower = asyncio.run(ask())

    assert gate.rows == 7
    assert follower.scored.reason_B.tolist() == [0] * 6


def test_a_known_pair_needs_no_engine_and_keeps_its_score(caching: Batcher, gate: _Gate):
    """The same request again, under a new policy: no row is run, the answer is the same and says cache."""
    gate.open.set()
    first = asyncio.run(caching.score(_work(5)))
    caching.use(caching.model.with_policy_of(caching.model.bundle))
    second = asyncio.run(caching.score(_work(5)))

    assert gate.rows == 5
    assert second.scored.cached_B.all()
    assert second.scored.score_B.tolist() == first.scored.score_B.tolist()
    assert second.scored.length_B.tolist() == first.scored.length_B.tolist()


def test_logits_that_are_not_numbers_are_not_cached(model: Model, gate: _Gate):
    """A session that gives NaN once: those rows are unscored, and run again when asked for again."""
    bad = [True]

    class Session:
        """NaN at first, then the real logits."""

        def run(self, batch):
            """Run, and spoil the first batch."""
            logits = gate.session.run(batch)
            return logits * float("nan") if bad and bad.pop() else logits

    caching = Batcher(gated(model, Session()), Telemetry(), BatcherOptions(), caches=(PairCache(10**6), None))
    answers = [asyncio.run(caching.score(_work(3))) for _ in range(2)]
    caching.close()

    assert [a.scored.reason_B.tolist() for a in answers] == [[1 + REASONS.index("nan")] * 3, [0, 0, 0]]


def test_an_engine_failure_fails_that_request_and_no_other(batcher: Batcher, gate: _Gate):
    """The session raises once: that request gets a typed error, the next one an answer."""

    async def ask():
        gate.broken = True
        gate.open.set()
        with pytest.raises(EngineError, match="RuntimeError"):
            await batcher.score(_work(2))
        gate.broken = False
        return await batcher.score(_work(2))

    answer = asyncio.run(ask())

    assert answer.scored.reason_B.tolist() == [0, 0]
    assert batcher.engines.alive


def test_a_second_failure_in_a_row_ends_everything(batcher: Batcher, gate: _Gate, lost):
    """The session fails twice: the process is told to end then, and later work gets an error instead of hanging."""

    async def ask():
        gate.broken = True
        gate.open.set()
        for _ in range(2):
            with pytest.raises(EngineError):
                await batcher.score(_work(2))
        with pytest.raises(EngineError, match="lost"):
            await asyncio.wait_for(batcher.score(_work(2)), 30)

    asyncio.run(ask())
    _wait_for(lost)

    assert ["2 failures in a row" in reason for reason in lost] == [True]
    assert not batcher.engines.alive


def test_a_batch_that_does_not_come_back_ends_everything(model: Model, gate: _Gate, lost):
    """A hung session: after hang_s the waiting request gets an error and the process is told to end."""
    options = BatcherOptions(engines=EngineOptions(hang_s=0.2))
    batcher = Batcher(gated(model, gate), Telemetry(), options, on_fatal=lost.append)

    async def ask():
        with pytest.raises(EngineError, match="not come back"):
            await batcher.score(_work(2))

    asyncio.run(ask())
    _wait_for(lost)
    alive = batcher.engines.alive
    gate.open.set()
    batcher.close()

    assert (len(lost), alive) == (1, False)


def test_an_idle_engine_runs_a_canary_and_a_wrong_one_ends_everything(model: Model, gate: _Gate, lost):
    """No traffic for canary_s: the canary runs on the model's own session; its logits are zeros, the engine is lost."""

    class Zeros:
        """Gives zeros; knows its precision, as a session does."""

        precision = model.session.precision

        def run(self, batch):
            """Give zeros."""
            return gate.session.run(batch) * 0

    options = BatcherOptions(engines=EngineOptions(canary_s=0.05))
    wrong = replace(gated(model, gate), sessions=(Zeros(),))
    batcher = Batcher(wrong, Telemetry(), options, on_fatal=lost.append)
    _wait_for(lost)
    batcher.close()

    assert ["canary" in reason for reason in lost] == [True]


def test_a_refused_query_leaves_no_room_taken(batcher: Batcher, gate: _Gate, model: Model):
    """After a too long query nothing is left in admission."""
    gate.open.set()
    long_query = "kettle " * (model.bundle.manifest.limits.max_query_tokens + 1)

    with pytest.raises(QueryTooLongError):
        asyncio.run(batcher.score(_work(9, query=long_query)))

    assert (batcher.admission.n_requests, batcher.admission.left) == (0, 0)


def test_a_closed_batcher_refuses(model: Model):
    """After close, work is refused as not ready."""
    batcher = Batcher(model, Telemetry(), BatcherOptions())
    batcher.close()

    with pytest.raises(NotReadyError):
        asyncio.run(batcher.score(_work(1)))
