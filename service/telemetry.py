"""Every Prometheus series of the service, declared once; label sets are initialised so that nothing is missing at zero.

One object an app, with a registry of its own. Labels are bounded: routes, status codes, policy locales, tiers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from relevance.labels import N_TIERS
from service.scorer import REASONS, Logits, Scored

ROUTES = ("/score", "/info", "/livez", "/readyz", "/startupz", "/metrics", "/docs", "/openapi.json", "/admin/drain")
UNMATCHED = "unmatched"
STAGES = ("queue", "tokenize", "infer", "post")
SIZE_CLASSES = ("none", "s", "m", "l", "xl")
_PAIR_OUTCOMES = {"deadline": "expired", "overload": "shed", "nan": "nan", "error": "error"}
_SECONDS = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5),
)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, *_SECONDS)
_ITEMS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 4000)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
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
        self.truncated = Counter("relevance_truncated", "Pairs whose item was not read to its end", registry=registry)
        self.batch_tokens = Histogram(
            "relevance_batch_tokens", "Pairs × padded length of a batch", buckets=_TOKENS, registry=registry
        )
        self.padding = Histogram(
            "relevance_batch_padding_ratio", "Share of a batch that is padding", buckets=_RATIOS, registry=registry
        )
        self.inflight = Gauge("relevance_inflight_requests", "Requests being answered", registry=registry)
        self.queued_pairs = Gauge("relevance_queued_pairs", "Admitted pairs not yet scored", registry=registry)
        self.engine_failures = Counter(
            "relevance_engine_failures", "Requests lost to an exception of the session", registry=registry
        )
        self.threads = Gauge("relevance_cpu_quota_threads", "Intra-op threads of the session", registry=registry)
        self.parity = Gauge(
            "relevance_parity_max_abs_error", "Largest |Δlogit| of the golden replay at start", registry=registry
        )
        self.ready = Gauge("relevance_ready", "1 while readiness is true", registry=registry)
        self.model_info = Gauge(
            "relevance_model_info",
            "Always 1; what is being served",
            ["bundle", "model", "precision", "provider", "calibration", "policy"],
            registry=registry,
        )
        self._initialise()

    def _initialise(self) -> None:
        for route in (*ROUTES, UNMATCHED):
            self.requests.labels(
                route, "200" if route != UNMATCHED else "404", outcome(200 if route in ROUTES else 404)
            )
        for status in (400, 413, 415, 422, 429, 500, 503, 504):
            self.requests.labels("/score", str(status), outcome(status))
        self.requests.labels("/score", "200", "partial")
        for name in SIZE_CLASSES:
            self.duration.labels("/score", name)
        for stage in STAGES:
            self.stage.labels(stage)
        for name in ("scored", "filtered", *_PAIR_OUTCOMES.values()):
            self.pairs.labels(name)

    def declare_locales(self, locales: Iterable[str]) -> None:
        """Initialise the series of each policy locale."""
        for locale in locales:
            for tier in range(N_TIERS):
                self.tier.labels(str(tier), locale)

    def observe_batches(self, logits: Logits) -> None:
        """Count the batches one request was run in."""
        for rows, length, real in logits.batches:
            self.batch_tokens.observe(rows * length)
            self.padding.observe(1 - real / (rows * length))

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
        self.truncated.inc(int(scored.truncated_B.sum()))

    def observe_lost(self, n_pairs: int, outcome: str) -> None:
        """Count the pairs of a request that got no answer: shed, expired or error."""
        self.items.observe(n_pairs)
        self.pairs.labels(outcome).inc(n_pairs)

    def exposition(self) -> bytes:
        """Give all series in the text format."""
        return bytes(generate_latest(self.registry))
