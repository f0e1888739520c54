"""The batcher: admission, deadlines, failures, exactly one answer each."""

from __future__ import annotations

import asyncio
from threading import Event
from time import monotonic

import pytest

from relevance.errors import DeadlineError, EngineError, NotReadyError, OverloadError, QueryTooLongError
from relevance.pairs import Item
from service.batcher import Batcher, Work
from service.lifecycle import Engine
from service.scorer import REASONS, Scorer
from service.telemetry import Telemetry


class _Gate:
    """A session that waits for `open` before each batch, and fails while `broken`."""

    def __init__(self, session) -> None:
        self.session, self.open, self.entered, self.broken = session, Event(), Event(), False

    def run(self, batch):
        """Wait, then run or raise."""
        self.entered.set()
        self.open.wait(30)
        if self.broken:
            raise RuntimeError("device lost")
        return self.session.run(batch)


def _work(n: int = 2, *, seconds: float = 30, query: str = "kettle", on_overload="reject") -> Work:
    items = [Item(f"steel kettle {i}") for i in range(n)]
    return Work(query, items, None, None, monotonic() + seconds, on_overload)


@pytest.fixture
def gate(engine: Engine):
    """A gated session, closed."""
    return _Gate(engine.session)


@pytest.fixture
def batcher(engine: Engine, gate):
    """A batcher with room for 10 waiting pairs over the gated session."""
    batcher = Batcher(Scorer(engine.bundle, gate, token_budget=64), Telemetry(), max_queued_pairs=10)
    yield batcher
    gate.open.set()
    batcher.close()


async def _until(event: Event) -> None:
    await asyncio.to_thread(event.wait, 30)


def test_many_callers_at_once_each_get_their_own_answer(engine: Engine):
    """40 concurrent requests of different queries: each answer equals the scorer's own for that query."""
    batcher = Batcher(engine.scorer, Telemetry(), max_queued_pairs=1000)
    works = [_work(1 + i % 5, query=f"kettle {i}") for i in range(40)]

    async def ask():
        return await asyncio.gather(*(batcher.score(work) for work in works))

    answers = asyncio.run(ask())
    batcher.close()

    for work, answer in zip(works, answers, strict=True):
        expected = engine.scorer.score(work.query, work.items)
        assert pytest.approx(expected.score_B, abs=1e-4) == answer.scored.score_B


def test_work_beyond_the_bound_is_shed_with_a_wait(batcher: Batcher, gate: _Gate):
    """8 pairs wait, 10 is the bound: 3 more are refused whole with a whole number of seconds; 2 more still fit."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(8)))
        await _until(gate.entered)
        with pytest.raises(OverloadError) as shed:
            await batcher.score(_work(3))
        fits = asyncio.create_task(batcher.score(_work(2)))
        gate.open.set()
        return shed.value, await first, await fits

    shed, first, fits = asyncio.run(ask())

    assert shed.retry_after_s >= 1
    assert (len(first.scored.tier_B), len(fits.scored.tier_B)) == (8, 2)


def test_shed_work_that_asked_for_partial_comes_back_unscored(batcher: Batcher, gate: _Gate):
    """`on_overload: partial` gives every row the reason overload instead of an error."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(9)))
        await _until(gate.entered)
        answer = await batcher.score(_work(3, on_overload="partial"))
        gate.open.set()
        await first
        return answer

    answer = asyncio.run(ask())

    assert [1 + REASONS.index("overload")] * 3 == answer.scored.reason_B.tolist()
    assert answer.scored.kept_B.all()


def test_work_that_waited_past_its_deadline_is_refused_unrun(batcher: Batcher, gate: _Gate):
    """Behind a closed gate a deadline of 10 ms passes: not one row was scored, so the error says so."""

    async def ask():
        first = asyncio.create_task(batcher.score(_work(2)))
        await _until(gate.entered)
        late = asyncio.create_task(batcher.score(_work(2, seconds=0.01)))
        await asyncio.sleep(0.05)
        gate.open.set()
        await first
        await late

    with pytest.raises(DeadlineError, match="2 items unscored"):
        asyncio.run(ask())


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
    assert batcher.alive


def test_a_refused_query_leaves_no_room_taken(batcher: Batcher, gate: _Gate, engine: Engine):
    """After a too long query of 9 items, 10 pairs still fit."""
    gate.open.set()
    long_query = "kettle " * (engine.bundle.manifest.limits.max_query_tokens + 1)

    async def ask():
        with pytest.raises(QueryTooLongError):
            await batcher.score(_work(9, query=long_query))
        return await asyncio.gather(batcher.score(_work(5)), batcher.score(_work(5)))

    assert [len(answer.scored.tier_B) for answer in asyncio.run(ask())] == [5, 5]


def test_a_closed_batcher_refuses(engine: Engine):
    """After close, work is refused as not ready."""
    batcher = Batcher(engine.scorer, Telemetry(), max_queued_pairs=10)
    batcher.close()

    with pytest.raises(NotReadyError):
        asyncio.run(batcher.score(_work(1)))
