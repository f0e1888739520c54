"""The phases of the process's life, and what it holds in them: model, batcher, caches, shadow, drift, pair log."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from relevance.errors import NotReadyError, RelevanceError, ReloadError
from relevance.policy import POOLED
from service.batcher import Answer, Batcher, BatcherOptions, Work
from service.drift import DriftMonitor
from service.engines import EngineOptions
from service.item_cache import ItemTokenCache
from service.model import Model, load_model, open_model_bundle
from service.pair_cache import PairCache, scoring_identity
from service.pair_log import PairLog
from service.settings import Settings
from service.shadow import Shadow
from service.telemetry import Telemetry
from service.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from service.shared_cache import SharedCache

log = logging.getLogger("relevance.service")
Phase = Literal["starting", "ready", "draining", "failed"]
Mode = Literal["score", "passthrough"]
EXIT_NOT_STARTED = 2
EXIT_ENGINE_LOST = 70
OnEnd = Callable[[int, str], None]
"""Called, on any thread, when the process cannot go on: exit status and reason."""
_TRACING_CLOSE_S = 2.0


@dataclass(slots=True)
class _Parts:
    """What a started service holds."""

    batcher: Batcher
    cache: PairCache | None
    shared_cache: SharedCache | None
    drift: DriftMonitor
    shadow: Shadow | None
    pair_log: PairLog | None


@dataclass(slots=True)
class Service:
    """The state of one app."""

    settings: Settings
    telemetry: Telemetry
    on_end: OnEnd = lambda status, reason: None
    phase: Phase = "starting"
    mode: Mode = "score"
    started: asyncio.Event = field(default_factory=asyncio.Event)
    tracing: Tracing = field(init=False)
    _parts: _Parts | None = None
    _previous: tuple[Settings, Model | None] | None = None
    _configured: Settings = field(init=False)
    _lost: str | None = None
    _drain_asked: bool = False
    _reloading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._configured = self.settings.model_copy(update={"bundle_id": None})
        self.mode = self.settings.mode
        self.tracing = open_tracing(enabled=self.settings.tracing)

    async def start(self) -> None:
        """Load everything on a thread of its own, then become ready; a failure is logged and reported."""
        began = perf_counter()
        try:
            self._parts = await asyncio.to_thread(self._load)
        except Exception as error:
            self.phase = "failed"
            log.error("not started: %s", error, exc_info=not isinstance(error, RelevanceError))
            self.on_end(EXIT_NOT_STARTED, _reason(error))
            self.started.set()
            return
        gc.collect()
        gc.freeze()
        self.phase = "ready"
        self.telemetry.ready.set(1)
        self.started.set()
        self._announce("ready", perf_counter() - began)
        if self._drain_asked:
            self.drain()

    def drain(self) -> None:
        """Let readiness say 503 from now on, asked during the start from its end; requests are still answered."""
        self._drain_asked = True
        if self.phase == "ready":
            self.phase = "draining"
            self.telemetry.ready.set(0)
            log.info("draining")

    def stop(self) -> None:
        """Answer what is queued and stop the threads."""
        self.drain()
        if self._parts is not None:
            parts = self._parts
            parts.batcher.close()
            for part in (parts.shadow, parts.pair_log, parts.shared_cache):
                if part is not None:
                    part.close()
        self.tracing.close(timeout_s=_TRACING_CLOSE_S)

    def running(self) -> Batcher:
        """Give the batcher.

        Raises: NotReadyError: before the start has finished.
        """
        if self._parts is None:
            raise NotReadyError(f"expected a ready service, found it {self.phase}")
        return self._parts.batcher

    @property
    def model(self) -> Model:
        """What scores now; raises NotReadyError before the start has finished."""
        return self.running().model

    @property
    def shadow(self) -> Shadow | None:
        """The shadow, if there is one."""
        return self._parts.shadow if self._parts is not None else None

    @property
    def alive(self) -> bool:
        """Whether the engines work, have not started yet, or are not needed."""
        if self.phase == "failed":
            return False
        return self.mode == "passthrough" or self._parts is None or self._parts.batcher.engines.alive

    @property
    def ready(self) -> bool:
        """Whether traffic may come: verified, warmed, not draining, and a batch or canary went well lately."""
        if self.phase != "ready" or self._parts is None:
            return False
        engines = self._parts.batcher.engines
        return self.mode == "passthrough" or (engines.alive and engines.fresh)

    def set_mode(self, mode: Mode) -> None:
        """Turn the kill switch: passthrough keeps every item, unscored, and the process up though engines be lost."""
        self.mode = mode
        self.telemetry.passthrough.set(mode == "passthrough")
        log.warning("mode is %s", mode)
        if self._lost is not None:
            self._on_fatal(self._lost)

    def observe(self, work: Work, answer: Answer) -> None:
        """Show an answered request to drift monitor, shadow and pair log; costs microseconds, never raises."""
        if self._parts is None:
            return
        scored, parts = answer.scored, self._parts
        has_score_B = scored.reason_B == 0
        parts.drift.observe(
            scored.policy_locale,
            scored.score_B[has_score_B],
            tier_B=scored.tier_B[has_score_B],
            length_B=scored.length_B[has_score_B],
        )
        if parts.shadow is not None:
            parts.shadow.offer(work.query, work.items, locale=work.locale, scored=scored, min_tier=work.min_tier)
        if parts.pair_log is not None:
            parts.pair_log.offer(work.query, work.items, locale=work.locale, scored=scored, bundle=answer.model.bundle)

    def exposition(self) -> bytes:
        """Give all series, the gauges that are worked out on demand brought up to date."""
        if self._parts is not None:
            parts, telemetry = self._parts, self.telemetry
            admission = parts.batcher.admission
            telemetry.queued_tokens.set(admission.left)
            telemetry.queued_requests.set(admission.n_requests)
            telemetry.estimated_wait.set(admission.wait_s)
            telemetry.oldest_age.set(parts.batcher.queue.oldest_age_s)
            telemetry.oldest_batch.set(parts.batcher.engines.oldest_batch_s)
            telemetry.tokens_per_s.set(parts.batcher.model.speed.tokens_per_s)
            telemetry.ready.set(self.ready)
            if parts.cache is not None:
                telemetry.cache_bytes.labels("pairs").set(parts.cache.n_bytes)
                telemetry.cache_entries.labels("pairs").set(len(parts.cache))
            items = parts.batcher.model.bundle.tokenizer.item_cache
            if isinstance(items, ItemTokenCache):
                telemetry.cache_bytes.labels("items").set(items.n_bytes)
                telemetry.cache_entries.labels("items").set(len(items))
            parts.drift.update()
        return self.telemetry.exposition()

    async def reload(
        self, bundle: Path | None = None, *, policy: Path | None = None, bundle_id: str | None = None
    ) -> str:
        """Replace the model: load, verify, replay, warm, then swap at once; on any failure nothing has changed.

        A bundle of the same graph, tokenizer and template, or another policy file, replaces calibrator and policy only.
        With nothing named, what the process was started with is read again.

        Args: bundle, policy: what is served now when None; bundle_id: that the bundle must have.
        Returns: `policy` or `bundle`: what was replaced.
        Raises: ReloadError: saying why the new one must not be served; NotReadyError: not started.
        """
        self.running()
        named = {name: path for name, path in (("bundle", bundle), ("policy", policy)) if path is not None}
        wanted = self._configured
        if named or bundle_id is not None:
            wanted = self.settings.model_copy(update={**named, "bundle_id": bundle_id})
        return await self._replace(wanted)

    async def rollback(self) -> str:
        """Go back to what ran before the last reload.

        Raises: ReloadError: if there was none, or it cannot be loaded any more.
        """
        if self._previous is None:
            raise ReloadError("expected an earlier reload to roll back, found none")
        return await self._replace(*self._previous)

    async def _replace(self, wanted: Settings, kept: Model | None = None) -> str:
        """Serve what some settings name, or a model that was kept."""
        if self._reloading.locked():
            raise ReloadError("expected no reload under way, found one; try again when it has ended")
        async with self._reloading:
            began, current = perf_counter(), self.model
            try:
                model = kept if kept is not None else await asyncio.to_thread(self._load_next, wanted)
            except Exception as error:
                self.telemetry.reloads.labels("refused").inc()
                log.error("not reloaded: %s", error, exc_info=not isinstance(error, RelevanceError))
                raise ReloadError(
                    f"{_reason(error)}; bundle {current.bundle.manifest.bundle_id} is still served"
                ) from error
            same_graph = model.sessions is current.sessions
            pinned = self.settings.model_copy(update={"bundle": current.bundle.path})
            if self._parts is not None:
                self._parts.batcher.use(model)
                if self._parts.shadow is not None:
                    self._parts.shadow.forget()
                self._parts.drift = DriftMonitor(model.bundle.baseline, self.telemetry)
            self._declare(model)
            self._previous, self.settings = (pinned, current if same_graph else None), wanted
            self.telemetry.reloads.labels("ok").inc()
            kind = "policy" if same_graph else "bundle"
            self._announce(f"{kind} reloaded", perf_counter() - began)
            return kind

    def _load_next(self, wanted: Settings) -> Model:
        current = self.model
        pinned = wanted.model_copy(update={"bundle": wanted.bundle.resolve()})
        bundle = open_model_bundle(pinned)
        precision = current.session.precision
        if precision in bundle.manifest.graphs and scoring_identity(bundle, precision) == current.identity:
            return current.with_policy_of(bundle)
        return load_model(pinned)

    def _load(self) -> _Parts:
        settings, telemetry = self.settings, self.telemetry
        model = load_model(settings.model_copy(update={"bundle": settings.bundle.resolve()}))
        shadow_model = None
        if settings.shadow_bundle is not None:
            changes = {"bundle": settings.shadow_bundle, "bundle_id": None, "policy": None, "engines": 1, "threads": 1}
            shadow_model = load_model(settings.model_copy(update=changes))
        pair_log = None
        if settings.pair_log is not None:
            pair_log = PairLog(
                settings.pair_log,
                telemetry,
                rate=settings.pair_log_rate,
                max_bytes=settings.pair_log_bytes,
                redact=settings.pair_log_redact,
            )
        cache = PairCache(settings.pair_cache_bytes) if settings.pair_cache_bytes else None
        shared_cache = None
        if settings.redis_url is not None:
            from service.shared_cache import SharedCache

            shared_cache = SharedCache(
                settings.redis_url.get_secret_value(),
                timeout_s=settings.redis_timeout_ms / 1000,
                ttl_s=settings.redis_ttl_s,
                telemetry=telemetry,
            )
        self._declare(model)
        batcher = Batcher(
            model,
            telemetry,
            BatcherOptions(
                batch_s=settings.batch_s,
                max_requests=settings.max_queued_requests,
                engines=EngineOptions(
                    count=settings.n_engines,
                    prefetch=settings.on_gpu if settings.prefetch is None else settings.prefetch,
                    hang_s=settings.hang_s,
                    canary_s=settings.canary_s,
                ),
            ),
            caches=(cache, shared_cache),
            tracing=self.tracing,
            on_fatal=self._on_fatal,
        )
        shadow = None
        if shadow_model is not None:
            shadow = Shadow(
                shadow_model,
                telemetry,
                rate=settings.shadow_rate,
                budget=settings.shadow_budget,
                primary_seconds_per_token=lambda: batcher.model.speed.thread_seconds_per_padded(
                    self.settings.session_threads
                ),
            )
        return _Parts(batcher, cache, shared_cache, DriftMonitor(model.bundle.baseline, telemetry), shadow, pair_log)

    def _on_fatal(self, reason: str) -> None:
        self._lost = reason
        if self.mode == "passthrough":
            return
        self.phase = "failed"
        self.telemetry.ready.set(0)
        self.on_end(EXIT_ENGINE_LOST, reason)

    def _declare(self, model: Model) -> None:
        bundle, telemetry = model.bundle, self.telemetry
        telemetry.declare_locales([POOLED, *bundle.policy.locales])
        telemetry.threads.set(self.settings.n_engines * self.settings.session_threads)
        telemetry.parity.set(model.replay.max_abs_difference)
        telemetry.passthrough.set(self.mode == "passthrough")
        telemetry.model_info.clear()
        telemetry.model_info.labels(
            bundle.manifest.bundle_id,
            bundle.manifest.model_id,
            model.session.precision,
            model.session.provider,
            bundle.calibrator.version,
            bundle.policy.version,
        ).set(1)

    def _announce(self, what: str, seconds: float) -> None:
        model = self.model
        manifest = model.bundle.manifest
        fields = {
            "bundle": manifest.bundle_id,
            "model": manifest.model_id,
            "precision": model.session.precision,
            "nodes": model.session.nodes,
            "flops_on_provider": round(model.session.flops_share, 4),
            "engines": self.settings.n_engines,
            "threads": self.settings.session_threads,
            "tokens_per_s": round(model.speed.tokens_per_s),
            "golden_pairs": model.replay.n_pairs,
            "golden_max_abs_difference": model.replay.max_abs_difference,
            "seconds": round(seconds, 3),
        }
        log.info(what, extra={"fields": fields})


def _reason(error: Exception) -> str:
    """Give an error's words, with its kind where it is none of ours."""
    return str(error) if isinstance(error, RelevanceError) else f"{type(error).__name__}: {error}"
