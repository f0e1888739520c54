"""The batcher: async front of the scorer. Admission, a first-in first-out queue, one engine thread, deadlines.

Texts are prepared on front threads while the engine runs another request's batches. No timer: an idle engine starts at
once. What callers see (`Work` in, `Answer` out, the errors) does not say how requests share batches.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic, perf_counter
from typing import Literal

from relevance.errors import DeadlineError, EngineError, NotReadyError, OverloadError
from relevance.pairs import Item
from service.scorer import Logits, Prepared, Scored, Scorer
from service.telemetry import Telemetry

log = logging.getLogger("relevance.service")
FRONT_THREADS = 2
_SPEED_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Work:
    """One request's pairs.

    Args: deadline: on the `time.monotonic` clock; on_overload: what to do when there is no room.
    """

    query: str
    items: Sequence[Item]
    locale: str | None
    min_tier: int | None
    deadline: float
    on_overload: Literal["reject", "partial"] = "reject"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request's pairs, and the seconds they waited for the engine."""

    scored: Scored
    queue_s: float


@dataclass(frozen=True, slots=True)
class _Queued:
    work: Work
    prepared: Prepared
    future: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=perf_counter)


class Batcher:
    """Answers each piece of work exactly once: with scores, or with one of the errors of `score`.

    Args: max_queued_pairs: admitted pairs not yet scored, beyond which work is shed; one piece is always admitted when
        nothing waits.
    """

    def __init__(self, scorer: Scorer, telemetry: Telemetry, *, max_queued_pairs: int) -> None:
        self.scorer = scorer
        self._telemetry = telemetry
        self._max_queued_pairs = max_queued_pairs
        self._queued_pairs = 0
        self._pairs_per_s = 0.0
        self._lock = Lock()
        self._queue: SimpleQueue[_Queued | None] = SimpleQueue()
        self._closed = False
        self.front = ThreadPoolExecutor(FRONT_THREADS, thread_name_prefix="front")
        self._engine = Thread(target=self._run_engine, name="engine", daemon=True)
        self._engine.start()

    @property
    def alive(self) -> bool:
        """Whether the engine thread is there to answer."""
        return self._engine.is_alive()

    async def score(self, work: Work) -> Answer:
        """Score one request's pairs; rows not reached before the deadline come back unscored.

        Raises: OverloadError: no room and `on_overload` is reject; DeadlineError: not one row was reached in time;
            QueryTooLongError; EngineError: the session raised; NotReadyError: closed.
        """
        n = len(work.items)
        try:
            self._admit(n)
        except OverloadError:
            if work.on_overload == "reject":
                self._telemetry.observe_lost(n, "shed")
                raise
            answer = Answer(self.scorer.unscored(n, "overload", locale=work.locale), 0.0)
            self._telemetry.observe_scored(answer.scored, queue_s=0.0)
            return answer
        try:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self.front, self._prepare, work)
            queued = _Queued(work, prepared)
            self._queue.put(queued)
            answer = await asyncio.wrap_future(queued.future)
        except DeadlineError:
            self._telemetry.observe_lost(n, "expired")
            raise
        except EngineError:
            self._telemetry.observe_lost(n, "error")
            raise
        finally:
            self._release(n)
        self._telemetry.observe_scored(answer.scored, queue_s=answer.queue_s)
        return answer

    def close(self) -> None:
        """Answer what is queued, then stop the threads."""
        self._closed = True
        self.front.shutdown(wait=True)
        self._queue.put(None)
        self._engine.join()

    def _prepare(self, work: Work) -> Prepared:
        return self.scorer.prepare(work.query, work.items, locale=work.locale)

    def _admit(self, n: int) -> None:
        with self._lock:
            if self._closed or not self.alive:
                raise NotReadyError("expected a running engine, found it stopped")
            if self._queued_pairs and self._queued_pairs + n > self._max_queued_pairs:
                speed = self._pairs_per_s
                wait_s = min(60, max(1, math.ceil(self._queued_pairs / speed))) if speed else 1
                raise OverloadError(
                    f"expected at most {self._max_queued_pairs} waiting pairs, found {self._queued_pairs} and {n} new; "
                    f"estimated wait {wait_s} s",
                    wait_s,
                )
            self._queued_pairs += n
            self._telemetry.queued_pairs.set(self._queued_pairs)

    def _release(self, n: int) -> None:
        with self._lock:
            self._queued_pairs -= n
            self._telemetry.queued_pairs.set(self._queued_pairs)

    def _run_engine(self) -> None:
        while (queued := self._queue.get()) is not None:
            if not queued.future.set_running_or_notify_cancel():
                continue
            try:
                queued.future.set_result(self._answer(queued))
            except DeadlineError as error:
                queued.future.set_exception(error)
            except Exception as error:
                log.exception("engine failure")
                self._telemetry.engine_failures.inc()
                failure = EngineError(f"the session failed on this request: {type(error).__name__}")
                failure.__cause__ = error
                queued.future.set_exception(failure)

    def _answer(self, queued: _Queued) -> Answer:
        work, prepared = queued.work, queued.prepared
        started = perf_counter()
        logits = self.scorer.run(prepared, stop=lambda: monotonic() >= work.deadline)
        if not logits.reached_B.any():
            raise DeadlineError(f"expected a first batch before the deadline, found {len(work.items)} items unscored")
        self._learn_speed(logits)
        self._telemetry.observe_batches(logits)
        scored = self.scorer.finish(prepared, logits, min_tier=work.min_tier)
        return Answer(scored, started - queued.since)

    def _learn_speed(self, logits: Logits) -> None:
        speed = int(logits.reached_B.sum()) / max(logits.infer_s, 1e-6)
        old = self._pairs_per_s
        self._pairs_per_s = speed if not old else old + _SPEED_WEIGHT * (speed - old)
