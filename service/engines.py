"""The engine threads: take a batch, run it, hand its logits back; and what happens when that goes wrong.

An exception fails its own batch, then a canary (golden pairs with known logits) tells whether the engine still works.
A second failure in a row, a failed canary or a batch that does not come back ends the process: a fresh one is the only
cure for a lost device, and no probe shall be told otherwise. Suffixes: N rows of a batch, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from relevance.errors import EngineError
from relevance.tokenization import PairBatch
from service.flow import Batch
from service.queueing import FairQueue
from service.telemetry import Telemetry

log = logging.getLogger("relevance.service")
_MOST_FAILURES = 2
_STALE_FORWARDS = 3
OnBatch = Callable[[Batch, NDArray[np.float32], float, float], None]
"""Told of each batch that ran, on the engine thread, before its flows are answered: logits, start and end."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How engines run.

    Args: count: threads; prefetch: whether a batch is cut and assembled while the one before it runs; hang_s: a batch
        that takes longer means a lost engine; canary_s: idle time after which golden pairs are run.
    """

    count: int = 1
    prefetch: bool = False
    hang_s: float = 30.0
    canary_s: float = 15.0


@dataclass(slots=True)
class _State:
    """What one engine is doing; busy_since: perf_counter at its batch's start, None = idle."""

    busy_since: float | None = None
    last_forward: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Assembled:
    batch: Batch
    inputs: PairBatch


class Engines:
    """The engine threads over one queue, and the watchdog over them.

    Args: canary: runs known pairs on the session of an engine, by its number; raises unless the logits are right;
        on_fatal: called once, with the reason, when the process must end.
    """

    def __init__(
        self,
        queue: FairQueue,
        telemetry: Telemetry,
        options: EngineOptions,
        *,
        canary: Callable[[int], None],
        on_batch: OnBatch,
        on_fatal: Callable[[str], None],
    ) -> None:
        self._queue, self._telemetry, self._options = queue, telemetry, options
        self._canary, self._on_batch, self._on_fatal = canary, on_batch, on_fatal
        self._states = [_State(last_forward=perf_counter()) for _ in range(options.count)]
        self._ahead = ThreadPoolExecutor(options.count, thread_name_prefix="ahead") if options.prefetch else None
        self._stopping = Event()
        self._lock = Lock()
        self._lost: str | None = None
        self._threads = [
            Thread(target=self._work, args=(number,), name=f"engine-{number}", daemon=True)
            for number in range(options.count)
        ]
        for thread in self._threads:
            thread.start()
        Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether every engine works: none lost, no thread gone, no batch older than half of what ends the process."""
        if self._lost is not None or not all(thread.is_alive() for thread in self._threads):
            return False
        return self.oldest_batch_s < self._options.hang_s / 2

    @property
    def fresh(self) -> bool:
        """Whether every engine has run a batch or a canary lately."""
        horizon = perf_counter() - _STALE_FORWARDS * self._options.canary_s
        return all(state.last_forward > horizon or state.busy_since is not None for state in self._states)

    @property
    def oldest_batch_s(self) -> float:
        """Seconds that the oldest running batch has taken so far; 0 when idle."""
        since = [state.busy_since for state in self._states if state.busy_since is not None]
        return perf_counter() - min(since) if since else 0.0

    def close(self) -> None:
        """Let the engines finish what waits, then end them."""
        self._queue.close()
        for thread in self._threads:
            thread.join(None if self._lost is None else 0)
        self._stopping.set()
        if self._ahead is not None:
            self._ahead.shutdown(wait=False)

    def _work(self, number: int) -> None:
        try:
            self._serve(number)
        except Exception as error:
            log.exception("engine thread ended", extra={"fields": {"engine": number}})
            self._lose(f"engine {number} ended: {type(error).__name__}")

    def _serve(self, number: int) -> None:
        ahead: Future[_Assembled | None] | None = None
        while self._lost is None:
            assembled = ahead.result() if ahead is not None else None
            ahead = None
            if assembled is None:
                assembled = self._next(wait_s=self._options.canary_s)
            if assembled is None:
                if self._queue.closed:
                    return
                self._probe(number)
                continue
            if self._ahead is not None:
                ahead = self._ahead.submit(self._next, wait_s=0.0)
            self._run(number, assembled)

    def _next(self, *, wait_s: float) -> _Assembled | None:
        batch = self._queue.take(wait_s=wait_s)
        return None if batch is None else _Assembled(batch, batch.assemble())

    def _run(self, number: int, assembled: _Assembled) -> None:
        state, batch = self._states[number], assembled.batch
        started = perf_counter()
        state.busy_since = started
        self._telemetry.inflight_batches.inc()
        try:
            sessions = batch.scorer.sessions
            session = sessions[number % len(sessions)]
            latents = None
            if batch.explained:
                logits_NK, latents = session.run_with_latents(assembled.inputs)
            else:
                logits_NK = session.run(assembled.inputs)
        except Exception as error:
            log.exception("engine failure", extra={"fields": {"engine": number, "rows": batch.n_rows}})
            self._failed(number, batch, error)
        else:
            ended = perf_counter()
            state.failures, state.last_forward = 0, ended
            self._telemetry.observe_batch(batch.n_rows, batch.length, batch.tokens, ended - started)
            batch.speed.observe(
                length=batch.length, padded_tokens=batch.padded_tokens, tokens=batch.tokens, seconds=ended - started
            )
            if not np.isfinite(logits_NK).all():
                self._telemetry.engine_failures.labels("nan").inc()
                log.error("logits that are not numbers", extra={"fields": {"rows": batch.n_rows}})
            self._on_batch(batch, logits_NK, started, ended)
            self._queue.complete(batch, logits_NK, ended - started, latents)
        finally:
            state.busy_since = None
            self._telemetry.inflight_batches.dec()

    def _failed(self, number: int, batch: Batch, error: Exception) -> None:
        state = self._states[number]
        state.failures += 1
        self._telemetry.engine_failures.labels("exception").inc()
        failure = EngineError(f"the session failed on this request: {type(error).__name__}")
        failure.__cause__ = error
        self._queue.fail(batch, failure)
        if state.failures >= _MOST_FAILURES:
            self._lose(f"{state.failures} failures in a row, the last: {type(error).__name__}")
        else:
            self._probe(number)

    def _probe(self, number: int) -> None:
        state = self._states[number]
        state.busy_since = perf_counter()
        try:
            self._canary(number)
        except Exception as error:
            self._telemetry.engine_failures.labels("canary").inc()
            log.exception("canary failure", extra={"fields": {"engine": number}})
            self._lose(f"the canary failed: {type(error).__name__}")
        else:
            state.last_forward = perf_counter()
        finally:
            state.busy_since = None

    def _watch(self) -> None:
        hang_s = self._options.hang_s
        while not self._stopping.wait(min(1.0, hang_s / 10)):
            self._telemetry.oldest_batch.set(self.oldest_batch_s)
            if self.oldest_batch_s > hang_s:
                self._lose(f"a batch has not come back for {hang_s:g} s")
                return

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._lost is not None:
                return
            self._lost = reason
        log.critical("engine lost", extra={"fields": {"reason": reason}})
        self._queue.abort(EngineError(f"the engine is lost: {reason}"))
        self._on_fatal(reason)
