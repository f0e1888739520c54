"""From a bundle directory to a ready engine, and the phases of the process's life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from relevance.bundle import Bundle, open_bundle
from relevance.errors import InputError, NotReadyError, RelevanceError
from relevance.pairs import Item
from relevance.policy import POOLED
from service.batcher import Batcher
from service.golden import Replay, replay
from service.item_cache import ItemTokenCache
from service.scorer import Scorer
from service.session import OnnxSession
from service.settings import DEFAULT_BUNDLE, Settings
from service.telemetry import Telemetry

log = logging.getLogger("relevance.service")
Phase = Literal["starting", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class Engine:
    """A verified bundle, its session and scorer, and what the golden replay showed."""

    bundle: Bundle
    session: OnnxSession
    scorer: Scorer
    replay: Replay


def load_engine(settings: Settings) -> Engine:
    """Open and verify the bundle, load the graph, replay the golden pairs, warm up.

    Raises: BundleError, InputError: one line that says why this bundle must not be served.
    """
    if settings.bundle == DEFAULT_BUNDLE and not DEFAULT_BUNDLE.is_dir():
        raise InputError(
            f"{DEFAULT_BUNDLE}: expected the embedded default bundle, found none; name one with --bundle or "
            "RELEVANCE_BUNDLE"
        )
    if settings.policy is not None and not settings.policy.is_file():
        raise InputError(f"{settings.policy}: expected a policy.toml, found no such file")
    bundle = open_bundle(settings.bundle, settings.policy)
    session = OnnxSession(bundle, precision=settings.precision, provider=settings.provider, threads=settings.threads)
    shown = replay(bundle, session, session.precision)
    if settings.item_cache_entries and settings.item_cache_bytes:
        bundle.tokenizer.item_cache = ItemTokenCache(
            max_entries=settings.item_cache_entries, max_bytes=settings.item_cache_bytes
        )
    scorer = Scorer(bundle, session, token_budget=settings.batch_tokens, keep_unscored=settings.keep_unscored)
    _warm_up(scorer)
    return Engine(bundle, session, scorer, shown)


@dataclass(slots=True)
class Service:
    """The state of one app: settings, telemetry, phase, and once started the engine and its batcher.

    Args: on_failure: called with the error when the start fails, so that the process can end.
    """

    settings: Settings
    telemetry: Telemetry
    on_failure: Callable[[RelevanceError], None] | None = None
    phase: Phase = "starting"
    engine: Engine | None = None
    batcher: Batcher | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Load the engine on a thread of its own, then become ready; a failure is logged and reported."""
        began = perf_counter()
        try:
            engine = await asyncio.to_thread(load_engine, self.settings)
        except RelevanceError as error:
            self.phase = "failed"
            log.error("not started: %s", error)
            if self.on_failure is not None:
                self.on_failure(error)
            self.started.set()
            return
        self.engine = engine
        self.batcher = Batcher(engine.scorer, self.telemetry, max_queued_pairs=self.settings.max_queued_pairs)
        self._declare(engine)
        self.phase = "ready"
        self.telemetry.ready.set(1)
        self.started.set()
        manifest = engine.bundle.manifest
        fields = {
            "bundle": manifest.bundle_id,
            "model": manifest.model_id,
            "precision": engine.session.precision,
            "threads": self.settings.threads,
            "golden_pairs": engine.replay.n_pairs,
            "golden_max_abs_difference": engine.replay.max_abs_difference,
            "seconds": round(perf_counter() - began, 3),
        }
        log.info("ready", extra={"fields": fields})

    def drain(self) -> None:
        """Let readiness say 503 from now on; requests are still answered."""
        if self.phase == "ready":
            self.phase = "draining"
            self.telemetry.ready.set(0)
            log.info("draining")

    def stop(self) -> None:
        """Answer what is queued and stop the threads."""
        self.drain()
        if self.batcher is not None:
            self.batcher.close()

    def running(self) -> tuple[Engine, Batcher]:
        """Give the engine and its batcher.

        Raises: NotReadyError: before the start has finished.
        """
        if self.engine is None or self.batcher is None:
            raise NotReadyError(f"expected a ready service, found it {self.phase}")
        return self.engine, self.batcher

    def _declare(self, engine: Engine) -> None:
        bundle, telemetry = engine.bundle, self.telemetry
        telemetry.declare_locales([POOLED, *bundle.policy.locales])
        telemetry.threads.set(self.settings.threads)
        telemetry.parity.set(engine.replay.max_abs_difference)
        telemetry.model_info.labels(
            bundle.manifest.bundle_id,
            bundle.manifest.model_id,
            engine.session.precision,
            engine.session.provider,
            bundle.calibrator.version,
            bundle.policy.version,
        ).set(1)


def _warm_up(scorer: Scorer) -> None:
    """Score a short and a very long item, so that arena, threads and code are there before traffic."""
    scorer.score("a", [Item("a"), Item("a " * scorer.bundle.template.max_chars)])
