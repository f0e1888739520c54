"""The batcher: async front of the engines. Cache, admission, tokenising, the queue, deadlines, cancellation.

Texts are prepared on front threads while engines run other requests' batches. What callers see (`Work` in, `Answer`
out, the errors) does not say how requests share batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from relevance.errors import DeadlineError, EngineError, NotReadyError, OverloadError
from relevance.pairs import Item
from service.admission import Admission
from service.engines import EngineOptions, Engines
from service.flow import Batch, Flow
from service.model import Model
from service.pair_cache import Found, PairCache, pack, pair_keys, unpack
from service.queueing import FairQueue
from service.scorer import Logits, Scored, reason_code
from service.speed import AnswerTime
from service.telemetry import Telemetry
from service.tracing import BatchFacts, NoTracing, RequestSpan, Tracing

if TYPE_CHECKING:
    from service.shared_cache import SharedCache

FRONT_THREADS = 2
INLINE_ROWS = 128
"""Up to so many rows are finished on the event loop: a thread would cost more than it takes off."""
EXPLAINED_AS = 4
"""Plain rows that an explained one counts as when the time to render and send an answer is estimated."""
Priority = Literal["low", "normal", "high"]
WEIGHTS: dict[Priority, float] = {"low": 0.25, "normal": 1.0, "high": 4.0}


@dataclass(frozen=True, slots=True)
class Work:
    """One request's pairs.

    Args: deadline: on the `time.monotonic` clock; on_overload: what to do when there is no room; priority: its share of
        the engines among those who wait; span: the tracer's own; explain: whether the answer shall be explained.
    """

    query: str
    items: Sequence[Item]
    locale: str | None
    min_tier: int | None
    deadline: float
    on_overload: Literal["reject", "partial"] = "reject"
    priority: Priority = "normal"
    span: RequestSpan | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request's pairs.

    Args: model: that scored them; queue_s: they waited; ready_at: `time.monotonic` when the last logits were there or
        the deadline came, None if neither was waited for.
    """

    scored: Scored
    model: Model
    queue_s: float
    ready_at: float | None = None


@dataclass(frozen=True, slots=True)
class BatcherOptions:
    """How requests are queued.

    Args: batch_s: time of a batch; max_requests: admitted at the same time; engines: of the threads that run batches.
    """

    batch_s: float = 0.04
    max_requests: int = 1024
    engines: EngineOptions = field(default_factory=EngineOptions)


class Batcher:
    """Answers each piece of work exactly once: with scores, or with one of the errors of `score`.

    Args: model: what scores from now on; `use` replaces it; cache, shared_cache: of pairs, None caches nothing there;
        on_fatal: called once, on any thread, when the engines are lost and the process must end.
    """

    def __init__(
        self,
        model: Model,
        telemetry: Telemetry,
        options: BatcherOptions,
        *,
        caches: tuple[PairCache | None, SharedCache | None] = (None, None),
        tracing: Tracing | None = None,
        on_fatal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.model = model
        self._telemetry = telemetry
        self._cache, self._shared = caches
        self._tracing = tracing or NoTracing()
        self._answer_time = AnswerTime()
        self.queue = FairQueue(batch_s=options.batch_s, engines=options.engines.count)
        self.admission = Admission(lambda: self.model.speed.tokens_per_s, max_requests=options.max_requests)
        self.front = ThreadPoolExecutor(FRONT_THREADS, thread_name_prefix="front")
        self.engines = Engines(
            self.queue,
            telemetry,
            options.engines,
            canary=lambda number: self.model.canary(number),
            on_batch=self._on_batch,
            on_fatal=on_fatal,
        )

    def use(self, model: Model) -> None:
        """Score what comes from now on with another model; what is under way ends with the one it began with."""
        self.model = model

    async def score(self, work: Work) -> Answer:
        """Score one request's pairs; rows not reached before the deadline come back unscored.

        Cancelling drops what has not run yet.

        Raises: OverloadError: no room and `on_overload` is reject; DeadlineError: not one row was reached in time;
            QueryTooLongError; EngineError: the session raised; NotReadyError: closed; NotOfferedError, TooLargeError:
            explanations that are not given.
        """
        n = len(work.items)
        model = self._model_for(work)
        if self.admission.closed:
            raise NotReadyError("expected a running batcher, found it closed")
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self.front, self._submit, model, work)
        try:
            flow = await asyncio.shield(job)
        except EngineError:
            self._telemetry.observe_lost(n, "error")
            raise
        except OverloadError:
            if work.on_overload == "reject":
                self._telemetry.observe_lost(n, "shed")
                raise
            answer = Answer(model.scorer.unscored(n, "overload", locale=work.locale), model, 0.0)
            self._telemetry.observe_scored(answer.scored, queue_s=0.0)
            return answer
        except asyncio.CancelledError:
            job.add_done_callback(self._abandon)
            self._gone(n)
            raise
        timer = loop.call_later(max(0.0, flow.ticket.deadline - monotonic()), self.queue.expire, flow)
        try:
            logits = await asyncio.wrap_future(flow.future)
        except asyncio.CancelledError:
            self.queue.close_flow(flow)
            self._gone(n)
            raise
        except DeadlineError:
            self._telemetry.cancelled.labels("expired").inc()
            self._telemetry.observe_lost(n, "expired")
            raise
        except EngineError:
            self._telemetry.observe_lost(n, "error")
            raise
        finally:
            timer.cancel()
            self.admission.release(flow.ticket)
        return await self._finish(work, model, flow, logits)

    def pass_through(self, work: Work) -> Answer:
        """Answer without looking at the items: every one is kept, and says so.

        Raises: NotOfferedError, TooLargeError: explanations that are not given.
        """
        model = self._model_for(work)
        answer = Answer(model.scorer.unscored(len(work.items), "passthrough", locale=work.locale), model, 0.0)
        self._telemetry.observe_scored(answer.scored, queue_s=0.0)
        return answer

    def sent(self, answer: Answer) -> None:
        """Take note, on the event loop, that an answer is on its way, so that the next deadlines leave time for it."""
        if answer.ready_at is not None:
            n_rows = _rows_to_render(len(answer.scored.tier_B), explained=answer.scored.basis is not None)
            self._answer_time.observe(monotonic() - answer.ready_at, n_rows)

    def close(self) -> None:
        """Answer what is queued, then stop the threads."""
        self.admission.close()
        self.front.shutdown(wait=True)
        self.engines.close()

    def _model_for(self, work: Work) -> Model:
        """Give what scores now, if it can do what the work asks for."""
        model = self.model
        if work.explain:
            model.explanations.check(len(work.items))
        return model

    def _submit(self, model: Model, work: Work) -> Flow:
        """On a front thread: look pairs up, ask for admission, tokenise what is left, queue it.

        What is to be explained is not looked up: caches hold logits, explanations need latents.
        """
        scorer = model.scorer
        explainer = model.explanations.explainer if work.explain else None
        texts = scorer.texts(work.query, work.items, locale=work.locale)
        caches = self._cache is not None or self._shared is not None
        keys = pair_keys(model.identity, texts.query, texts.items) if caches else None
        known = self._local(model, keys) if keys is not None and explainer is None else None
        missing = np.flatnonzero(~known.found_B).tolist() if known is not None else list(range(len(texts.items)))
        n_rows = _rows_to_render(len(texts.items), explained=work.explain)
        ticket = self.admission.admit(
            model.costs.tokens(texts, missing),
            weight=WEIGHTS[work.priority],
            deadline=work.deadline - self._answer_time.reserve_s(n_rows),
        )
        try:
            if keys is not None and known is not None and missing and self._shared is not None:
                missing = self._share(self._shared, keys, known, missing)
            prepared = scorer.tokenize(texts, known)
            if explainer is not None:
                prepared = explainer.read(texts, prepared)
            whole = [row for row in missing if not prepared.truncated_B[row]]
            model.costs.learn(texts, whole, int(prepared.length_B[whole].sum()))
            ticket.left = int(prepared.length_B[missing].sum())
            flow = Flow(scorer, model.speed, prepared, ticket=ticket, keys=keys, span=work.span)
            self.queue.submit(flow)
        except BaseException:
            self.admission.release(ticket)
            raise
        if prepared.reading is not None:
            prepared.reading.prepare()
        return flow

    def _local(self, model: Model, keys: list[bytes]) -> Found:
        """Look pairs up in this process."""
        values = self._cache.get_many(keys) if self._cache is not None else [None] * len(keys)
        known = unpack(values, model.bundle.scheme.n_classes)
        hits = int(known.found_B.sum())
        self._telemetry.cache_hits.labels("local").inc(hits)
        self._telemetry.cache_misses.labels("local").inc(len(keys) - hits)
        return known

    def _share(self, shared: SharedCache, keys: list[bytes], known: Found, missing: list[int]) -> list[int]:
        """Look the missing pairs up in Redis, add what is found to the known ones, and give those still missing."""
        rows = np.asarray(missing)
        values = shared.get_many([keys[row] for row in missing])
        found = unpack(values, known.logits_BK.shape[1])
        there = rows[found.found_B]
        known.found_B[there] = True
        known.logits_BK[there] = found.logits_BK[found.found_B]
        known.length_B[there] = found.length_B[found.found_B]
        known.truncated_B[there] = found.truncated_B[found.found_B]
        self._telemetry.cache_hits.labels("shared").inc(len(there))
        self._telemetry.cache_misses.labels("shared").inc(len(rows) - len(there))
        self._telemetry.shared_cache_errors.labels("garbage").inc(found.n_garbage)
        if self._cache is not None:
            sound = found.found_B.tolist()
            self._cache.put_many(
                [keys[row] for row in there.tolist()], [v for v, ok in zip(values, sound, strict=True) if ok]
            )
        return [int(row) for row in rows[~found.found_B]]

    def _on_batch(self, batch: Batch, logits_NK: NDArray[np.float32], started_s: float, ended_s: float) -> None:
        """On an engine thread: cache a batch's logits before its rows can be asked for again, and trace it."""
        facts = BatchFacts(batch.n_rows, batch.tokens, batch.padded_tokens, batch.speed.precision)
        self._tracing.batch([flow.span for flow, _ in batch.parts], facts=facts, start_s=started_s, end_s=ended_s)
        if self._cache is None and self._shared is None:
            return
        keys: list[bytes] = []
        for flow, rows in batch.parts:
            if flow.keys is not None:
                keys += [flow.keys[row] for row in rows.tolist()]
        length_N = np.concatenate([flow.prepared.length_B[rows] for flow, rows in batch.parts])
        truncated_N = np.concatenate([flow.prepared.truncated_B[rows] for flow, rows in batch.parts])
        values = pack(logits_NK, length_N, truncated_N)
        if self._cache is not None:
            self._cache.put_many(keys, values)
        if self._shared is not None:
            self._shared.put_many(keys, values)

    async def _finish(self, work: Work, model: Model, flow: Flow, logits: Logits) -> Answer:
        """Calibrate and decide; count what became of the pairs."""
        ended = perf_counter()
        arguments = (flow.prepared, logits)
        if len(work.items) <= INLINE_ROWS:
            scored = model.scorer.finish(*arguments, min_tier=work.min_tier)
        else:
            finish = partial(model.scorer.finish, *arguments, min_tier=work.min_tier)
            scored = await asyncio.get_running_loop().run_in_executor(self.front, finish)
        queue_s = max(0.0, ended - flow.since - logits.infer_s)
        if (scored.reason_B == reason_code("deadline")).any():
            self._telemetry.cancelled.labels("expired").inc()
        self._telemetry.observe_scored(scored, queue_s=queue_s)
        self._telemetry.explained.inc(work.explain)
        stages = {
            "tokenize": (flow.since - scored.tokenize_s, flow.since),
            "queue": (flow.since, flow.since + queue_s),
            "infer": (flow.since + queue_s, ended),
            "post": (ended, perf_counter()),
        }
        for name, (start_s, end_s) in stages.items():
            self._tracing.stage(work.span, name=name, start_s=start_s, end_s=end_s)
        return Answer(scored, model, queue_s, flow.answered_at)

    def _abandon(self, job: asyncio.Future[Flow]) -> None:
        """Drop a flow whose caller left before it was queued."""
        if not job.cancelled() and job.exception() is None:
            flow = job.result()
            self.queue.close_flow(flow)
            self.admission.release(flow.ticket)

    def _gone(self, n_pairs: int) -> None:
        self._telemetry.cancelled.labels("cancelled").inc()
        self._telemetry.observe_lost(n_pairs, "cancelled")


def _rows_to_render(n_items: int, *, explained: bool) -> int:
    return n_items * (EXPLAINED_AS if explained else 1)
