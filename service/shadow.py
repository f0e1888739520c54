"""The shadow: a second bundle that scores sampled traffic off the critical path, to see how far it agrees.

Suffix: B pairs.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from random import Random
from threading import Event, Lock, Thread, get_native_id
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

import numpy as np

from relevance.pairs import Item
from service.comparison import Agreement, Judged, compare, figure
from service.scorer import Scored
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from service.model import Model

log = logging.getLogger("relevance.service")
MAX_WAITING_PAIRS = 4096
"""While as many wait, requests are dropped; below it each is taken whole, so that large ones are not left out."""
CHUNK_PAIRS = 32
"""Pairs scored in one go: few, so that a core is never held for long."""
NICE = 19
_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Sample:
    query: str
    items: Sequence[Item]
    locale: str | None
    min_tier: int | None
    scored: Scored
    agreement: Agreement


class Shadow:
    """Scores a sample of answered requests with a second model on one thread of its own.

    The thread works in small chunks, rests after each so that it works at most a share of the time, and has a low
    priority. What goes wrong in it is counted and logged once a kind; nothing reaches the caller of `offer`. Items
    that the primary gave no score are not looked at.

    Args: model: with one intra-op thread, so that its session runs on the shadow's thread alone; rate: share of
        requests sampled; budget: share of the time the thread may work; primary_seconds_per_token: thread-seconds
        (threads × seconds) of the primary's session a padded token, 0 while unknown.
    """

    def __init__(
        self,
        model: Model,
        telemetry: Telemetry,
        *,
        rate: float,
        budget: float,
        primary_seconds_per_token: Callable[[], float],
    ) -> None:
        self.model = model
        self.agreement = Agreement()
        self._flips = telemetry.shadow_flips
        self._gauges = (telemetry.shadow_kappa, telemetry.shadow_rank_correlation, telemetry.shadow_latency_ratio)
        self._rate, self._budget = rate, budget
        self._primary_seconds_per_token = primary_seconds_per_token
        self._random = Random()
        self._outcomes = {name: telemetry.shadow_pairs.labels(name) for name in ("scored", "dropped", "failed")}
        self._totals: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._taken = self._refused = self._done = 0
        self._offering = Lock()
        self._queue: SimpleQueue[_Sample | None] = SimpleQueue()
        self._stop = Event()
        self._started = self._awake_since = perf_counter()
        self._busy_s = 0.0
        self._set_gauges()
        self._thread = Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def waiting_pairs(self) -> int:
        """Sampled pairs not yet scored."""
        return self._taken - self._done

    def offer(
        self, query: str, items: Sequence[Item], *, locale: str | None, scored: Scored, min_tier: int | None = None
    ) -> None:
        """Perhaps take an answered request as a sample; never waits, never raises.

        Args: as the request was scored: query, items, locale, min_tier; scored: the primary's answer, row for row.
        """
        if self._random.random() >= self._rate:
            return
        n = int(np.count_nonzero(scored.reason_B == 0))
        if not n:
            return
        with self._offering:
            taken = self.waiting_pairs < MAX_WAITING_PAIRS and not self._stop.is_set()
            self._taken += n if taken else 0
            self._refused += 0 if taken else n
        if taken:
            self._queue.put(_Sample(query, items, locale, min_tier, scored, self.agreement))
        else:
            self._outcomes["dropped"].inc(n)

    def forget(self) -> None:
        """Start the comparison anew, because the primary's bundle or policy was replaced; what waits is dropped."""
        self.agreement = Agreement()
        self._set_gauges()

    def report(self) -> dict[str, object]:
        """Give what the shadow is, what became of the sampled pairs and how far it agrees, as JSON types."""
        manifest = self.model.bundle.manifest
        return {
            "bundle_id": manifest.bundle_id,
            "model_id": manifest.model_id,
            "precision": self.model.session.precision,
            "rate": self._rate,
            "budget": self._budget,
            "busy_share": self._busy_s / (perf_counter() - self._started),
            "waiting_pairs": self.waiting_pairs,
            "sampled_pairs": {
                "scored": self._totals["scored"],
                "dropped": self._totals["dropped"] + self._refused,
                "failed": self._totals["failed"],
            },
            "failures": dict(self._failures),
            "latency_ratio": figure(self._latency_ratio()),
            "window": self.agreement.report(),
        }

    def close(self) -> None:
        """Stop after the chunk in work, forgetting what waits; a session that hangs is left to its daemon thread."""
        self._stop.set()
        self._queue.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            log.warning("shadow still in its session after %g s, left alone", _CLOSE_S)
        for gauge in self._gauges:
            gauge.set(math.nan)

    def _run(self) -> None:
        _lower_priority()
        while (sample := self._queue.get()) is not None and not self._stop.is_set():
            self._awake_since = perf_counter()
            n = int(np.count_nonzero(sample.scored.reason_B == 0))
            try:
                self._score(sample, n)
            except Exception as error:
                kind = type(error).__name__
                if kind not in self._failures:
                    log.exception("shadow failure, further ones of this kind are only counted")
                self._failures[kind] += 1
                self._count("failed", n)
            self._done += n
            self._rest()

    def _score(self, sample: _Sample, n: int) -> None:
        rows = np.flatnonzero(sample.scored.reason_B == 0)
        chunks: list[Scored] = []
        session_s = 0.0
        for start in range(0, n, CHUNK_PAIRS):
            if start:
                self._rest()
            if self._stop.is_set() or sample.agreement is not self.agreement:
                self._count("dropped", n)
                return
            items = [sample.items[row] for row in rows[start : start + CHUNK_PAIRS].tolist()]
            cpu_s = thread_time()
            chunks.append(self.model.scorer.score(sample.query, items, locale=sample.locale, min_tier=sample.min_tier))
            session_s += self._session_s(chunks[-1], thread_time() - cpu_s)
        both_B = np.concatenate([c.reason_B for c in chunks]) == 0
        shadow = Judged(
            np.concatenate([c.score_B for c in chunks])[both_B],
            np.concatenate([c.tier_B for c in chunks])[both_B],
            np.concatenate([c.kept_B for c in chunks])[both_B],
        )
        scored, rows = sample.scored, rows[both_B]
        comparison = compare(
            Judged(scored.score_B[rows], scored.tier_B[rows], scored.kept_B[rows]),
            shadow,
            locale=scored.policy_locale,
            session_s=session_s,
            padded_tokens=sum(c.padded_tokens for c in chunks),
        )
        self._count("failed", n - len(rows))
        if len(rows):
            self._count("scored", len(rows))
            self._flips.inc(comparison.n_flips)
            sample.agreement.add(comparison)
            self._set_gauges()

    def _session_s(self, scored: Scored, cpu_s: float) -> float:
        """Give the session's seconds, without those for which a busy CPU kept this thread waiting."""
        return min(scored.infer_s, cpu_s) if self.model.session.provider == "cpu" else scored.infer_s

    def _rest(self) -> None:
        """Pay for the work since the last rest."""
        worked_s = perf_counter() - self._awake_since
        self._busy_s += worked_s
        self._stop.wait(worked_s * (1 / self._budget - 1))
        self._awake_since = perf_counter()

    def _count(self, outcome: str, n: int) -> None:
        self._outcomes[outcome].inc(n)
        self._totals[outcome] += n

    def _latency_ratio(self) -> float:
        primary = self._primary_seconds_per_token()
        return self.agreement.seconds_per_token() / primary if primary > 0 else math.nan

    def _set_gauges(self) -> None:
        kappa, rank_correlation, latency_ratio = self._gauges
        kappa.set(self.agreement.kappa())
        rank_correlation.set(self.agreement.rank_correlation())
        latency_ratio.set(self._latency_ratio())


def _lower_priority() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICE)
    except OSError as error:
        log.info("shadow at normal priority: %s", error.strerror)
