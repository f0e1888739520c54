"""Every Prometheus series of the service, declared once; label sets are initialised so that nothing is missing at zero.

One object an app, with a registry of its own. Labels are bounded: routes, status codes, policy locales, tiers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from relevance.labels import N_TIERS
from service.scorer import REASONS, Scored

ADMIN_ROUTES = ("/admin/drain", "/admin/reload", "/admin/rollback", "/admin/mode", "/admin/shadow")
SCORING_ROUTES = ("/score", "/rerank", "/v1/rerank", "/v2/rerank")
ROUTES = (
    *SCORING_ROUTES,
    *("/v1/models", "/info", "/livez", "/readyz", "/startupz", "/metrics", "/docs", "/openapi.json"),
    *("/", "/playground"),
    *ADMIN_ROUTES,
)
UNMATCHED = "unmatched"
STAGES = ("queue", "tokenize", "infer", "post")
SIZE_CLASSES = ("none", "s", "m", "l", "xl")
_PAIR_OUTCOMES = {
    "deadline": "expired",
    "overload": "shed",
    "nan": "nan",
    "error": "error",
    "passthrough": "passthrough",
}
_SECONDS = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5),
)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, *_SECONDS)
_ITEMS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 4000)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_LAG_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)
_SCORES = tuple(round(0.05 * i, 2) for i in range(1, 21))
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)


def size_class(n_items: int | None) -> str:
    """Give the size class of a request: none, s ≤ 50 items, m ≤ 200, l ≤ 1000, xl."""
    if n_items is None:
        return "none"
    return "s" if n_items <= 50 else "m" if n_items <= 200 else "l" if n_items <= 1000 else "xl"


def outcome(status: int, *, partial: bool = False) -> str:
    """Give the outcome label of a response."""
    named = {429: "shed", 503: "unavailable", 504: "expired"}
    if status in named:
        return named[status]
    if status >= 400:
        return "refused" if status < 500 else "failed"
    return "partial" if partial else "ok"


class ScoreHistogram:
    """`relevance_score` by policy locale, counted a request at a time: a call a pair would cost milliseconds."""

    def __init__(self) -> None:
        self._count: dict[str, NDArray[np.int64]] = {}
        self._sum: dict[str, float] = {}

    def observe(self, locale: str, score_B: NDArray[np.float64]) -> None:
        """Count the scores of some pairs; on one thread only."""
        bins = np.searchsorted(_SCORES, score_B)
        zeros = np.zeros(len(_SCORES) + 1, dtype=np.int64)
        self._count[locale] = self._count.get(locale, zeros) + np.bincount(bins, minlength=len(zeros))
        self._sum[locale] = self._sum.get(locale, 0.0) + float(score_B.sum())

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Give the series of each locale."""
        family = HistogramMetricFamily("relevance_score", "Scores of scored pairs", labels=["locale"])
        for locale, count in list(self._count.items()):
            edges = [*(floatToGoString(edge) for edge in _SCORES), "+Inf"]
            family.add_metric([locale], list(zip(edges, np.cumsum(count).tolist(), strict=True)), self._sum[locale])
        yield family


class Telemetry:
    """The instruments of one app."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("relevance_requests", "Responses", ["route", "code", "outcome"], registry=registry)
        self.duration = Histogram(
            "relevance_request_duration_seconds",
            "First byte of the request to last byte of the response",
            ["route", "size_class"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage = Histogram(
            "relevance_stage_duration_seconds",
            "Time of one request in a stage",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.items = Histogram("relevance_items_per_request", "Items", buckets=_ITEMS, registry=registry)
        self.pairs = Counter(
            "relevance_pairs",
            "Pairs by what became of them: scored and kept, filtered, or never scored",
            ["outcome"],
            registry=registry,
        )
        self.tier = Counter("relevance_tier", "Scored pairs", ["tier", "locale"], registry=registry)
        self.fallbacks = Counter(
            "relevance_locale_fallback", "Requests whose locale took the pooled cut points", registry=registry
        )
        self.explained = Counter(
            "relevance_explained_requests", "Scored requests that asked for explanations", registry=registry
        )
        self.truncated = Counter("relevance_truncated", "Pairs whose item was not read to its end", registry=registry)
        self.batch_tokens = Histogram(
            "relevance_batch_tokens", "Pairs × padded length of a batch", buckets=_TOKENS, registry=registry
        )
        self.padding = Histogram(
            "relevance_batch_padding_ratio", "Share of a batch that is padding", buckets=_RATIOS, registry=registry
        )
        self._declare_saturation(registry)
        self._declare_caches(registry)
        self._declare_model(registry)
        self._declare_shadow_and_logs(registry)
        self._initialise()

    def _declare_saturation(self, registry: CollectorRegistry) -> None:
        self.inflight = Gauge("relevance_inflight_requests", "Requests being answered", registry=registry)
        self.queued_tokens = Gauge(
            "relevance_queue_tokens", "Estimated tokens of admitted pairs not yet run", registry=registry
        )
        self.queued_requests = Gauge("relevance_queue_requests", "Admitted requests not answered", registry=registry)
        self.oldest_age = Gauge(
            "relevance_queue_oldest_age_seconds",
            "Age of the oldest request that waits for the engine",
            registry=registry,
        )
        self.estimated_wait = Gauge(
            "relevance_estimated_wait_seconds", "Queued tokens over measured tokens/s", registry=registry
        )
        self.inflight_batches = Gauge("relevance_inflight_batches", "Batches in a session", registry=registry)
        self.oldest_batch = Gauge(
            "relevance_oldest_batch_age_seconds", "Age of the oldest batch in a session", registry=registry
        )
        self.tokens_per_s = Gauge(
            "relevance_tokens_per_second", "Measured speed of all engines together, real tokens", registry=registry
        )
        self.engine_busy = Counter("relevance_engine_busy_seconds", "Seconds in a session", registry=registry)
        self.engine_failures = Counter(
            "relevance_engine_failures",
            "Batches that failed: exception of the session, NaN in the logits, failed canary",
            ["kind"],
            registry=registry,
        )
        self.loop_lag = Histogram(
            "relevance_event_loop_lag_seconds",
            "How late the event loop wakes up",
            buckets=_LAG_SECONDS,
            registry=registry,
        )
        self.cancelled = Counter(
            "relevance_dropped_requests",
            "Admitted requests that ended unanswered or short: client gone, deadline",
            ["kind"],
            registry=registry,
        )
        self.threads = Gauge(
            "relevance_cpu_quota_threads", "Engines × intra-op threads, taken from the CPU quota", registry=registry
        )

    def _declare_caches(self, registry: CollectorRegistry) -> None:
        self.cache_hits = Counter("relevance_cache_hits", "Pairs whose logits were found", ["tier"], registry=registry)
        self.cache_misses = Counter("relevance_cache_misses", "Pairs not found", ["tier"], registry=registry)
        self.cache_bytes = Gauge("relevance_cache_bytes", "Estimated bytes held", ["cache"], registry=registry)
        self.cache_entries = Gauge("relevance_cache_entries", "Entries held", ["cache"], registry=registry)
        self.shared_cache_errors = Counter(
            "relevance_shared_cache_errors", "Failed uses of Redis, each a miss", ["kind"], registry=registry
        )
        self.shared_cache_seconds = Histogram(
            "relevance_shared_cache_duration_seconds",
            "Time of one look-up in Redis",
            buckets=_STAGE_SECONDS,
            registry=registry,
        )

    def _declare_model(self, registry: CollectorRegistry) -> None:
        self.parity = Gauge(
            "relevance_parity_max_abs_error", "Largest |Δlogit| of the golden replay at start", registry=registry
        )
        self.ready = Gauge("relevance_ready", "1 while readiness is true", registry=registry)
        self.passthrough = Gauge("relevance_passthrough", "1 while the kill switch keeps every item", registry=registry)
        self.model_info = Gauge(
            "relevance_model_info",
            "1 for what is being served",
            ["bundle", "model", "precision", "provider", "calibration", "policy"],
            registry=registry,
        )
        self.reloads = Counter("relevance_reloads", "Reloads by outcome", ["outcome"], registry=registry)
        self.drift_psi = Gauge(
            "relevance_drift_psi",
            "Population stability index of recent pairs against the bundle's baseline",
            ["what", "locale"],
            registry=registry,
        )
        self.score = ScoreHistogram()
        registry.register(self.score)

    def _declare_shadow_and_logs(self, registry: CollectorRegistry) -> None:
        self.shadow_pairs = Counter(
            "relevance_shadow_pairs", "Sampled pairs by what became of them", ["outcome"], registry=registry
        )
        self.shadow_flips = Counter(
            "relevance_shadow_tier_flips", "Pairs whose tier differs in the shadow bundle", registry=registry
        )
        self.shadow_kappa = Gauge(
            "relevance_shadow_tier_kappa", "Quadratically weighted kappa of recent tiers", registry=registry
        )
        self.shadow_rank_correlation = Gauge(
            "relevance_shadow_rank_correlation", "Mean Spearman correlation of recent requests", registry=registry
        )
        self.shadow_latency_ratio = Gauge(
            "relevance_shadow_latency_ratio", "Shadow over primary session seconds a token", registry=registry
        )
        self.pair_log_rows = Counter(
            "relevance_pair_log_rows", "Sampled pairs by what became of them", ["outcome"], registry=registry
        )
        self.pair_log_bytes = Gauge("relevance_pair_log_bytes", "Bytes of pair log on disk", registry=registry)

    def _initialise(self) -> None:
        for gauge in (self.shadow_kappa, self.shadow_rank_correlation, self.shadow_latency_ratio):
            gauge.set(math.nan)
        for route in (*ROUTES, UNMATCHED):
            self.requests.labels(
                route, "200" if route != UNMATCHED else "404", outcome(200 if route in ROUTES else 404)
            )
        for route in SCORING_ROUTES:
            for status in (400, 401, 408, 413, 415, 422, 429, 500, 503, 504):
                self.requests.labels(route, str(status), outcome(status))
            self.requests.labels(route, "499", "cancelled")
        self.requests.labels("/score", "200", "partial")
        for name in SIZE_CLASSES:
            self.duration.labels("/score", name)
        for stage in STAGES:
            self.stage.labels(stage)
        for name in ("scored", "filtered", *_PAIR_OUTCOMES.values(), "cancelled"):
            self.pairs.labels(name)
        self._initialise_kinds()

    def _initialise_kinds(self) -> None:
        for tier in ("local", "shared"):
            self.cache_hits.labels(tier)
            self.cache_misses.labels(tier)
        for cache in ("pairs", "items"):
            self.cache_bytes.labels(cache)
            self.cache_entries.labels(cache)
        for counter, kinds in (
            (self.shared_cache_errors, ("timeout", "connection", "garbage", "full")),
            (self.engine_failures, ("exception", "nan", "canary")),
            (self.cancelled, ("cancelled", "expired")),
            (self.reloads, ("ok", "refused")),
            (self.shadow_pairs, ("scored", "dropped", "failed")),
            (self.pair_log_rows, ("written", "dropped")),
        ):
            for kind in kinds:
                counter.labels(kind)

    def declare_locales(self, locales: Iterable[str]) -> None:
        """Initialise the series of each policy locale."""
        for locale in locales:
            self.score.observe(locale, np.empty(0))
            for tier in range(N_TIERS):
                self.tier.labels(str(tier), locale)

    def observe_batch(self, n_rows: int, length: int, tokens: int, seconds: float) -> None:
        """Count one batch that ran; length: padded; tokens: real ones."""
        self.batch_tokens.observe(n_rows * length)
        self.padding.observe(1 - tokens / (n_rows * length))
        self.engine_busy.inc(seconds)

    def observe_scored(self, scored: Scored, *, queue_s: float) -> None:
        """Count the pairs of one answered request, and its time by stage."""
        for stage, seconds in zip(STAGES, (queue_s, scored.tokenize_s, scored.infer_s, scored.post_s), strict=True):
            self.stage.labels(stage).observe(seconds)
        self.items.observe(len(scored.tier_B))
        has_score_B = scored.reason_B == 0
        kept = int((has_score_B & scored.kept_B).sum())
        self.pairs.labels("scored").inc(kept)
        self.pairs.labels("filtered").inc(int(has_score_B.sum()) - kept)
        for code, reason in enumerate(REASONS, start=1):
            self.pairs.labels(_PAIR_OUTCOMES[reason]).inc(int((scored.reason_B == code).sum()))
        for tier, count in enumerate(np.bincount(scored.tier_B[has_score_B], minlength=N_TIERS).tolist()):
            self.tier.labels(str(tier), scored.policy_locale).inc(count)
        self.score.observe(scored.policy_locale, scored.score_B[has_score_B])
        self.truncated.inc(int(scored.truncated_B.sum()))

    def observe_lost(self, n_pairs: int, outcome: str) -> None:
        """Count the pairs of a request that got no answer: shed, expired or error."""
        self.items.observe(n_pairs)
        self.pairs.labels(outcome).inc(n_pairs)

    def exposition(self) -> bytes:
        """Give all series in the text format."""
        return bytes(generate_latest(self.registry))
