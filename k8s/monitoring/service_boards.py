"""The dashboards of the service itself: golden signals, batcher, engine."""

from __future__ import annotations

from k8s.monitoring.cause_rules import LOOP_LAG, PADDING
from k8s.monitoring.objectives import (
    AVAILABILITY,
    MAX_LOOP_LAG_S,
    MAX_PADDING_RATIO,
    SCORING,
)
from k8s.monitoring.panels import Board, Chart
from k8s.monitoring.queries import IN, POD, answered, by_pod, quantile, quantiles, rate, total
from k8s.monitoring.slo_rules import ratio_name

_HITS = rate("relevance_cache_hits_total", "tier")
_MISSES = rate("relevance_cache_misses_total", "tier")
_BUSY = rate("relevance_engine_busy_seconds_total", "pod")
_SIZE = 'size_class=~"$size_class"'
GOLDEN = Board(
    "relevance-golden",
    "Relevance: golden signals",
    "Traffic, latency by size class (s ≤ 50 items, m ≤ 200, l ≤ 1000, xl), errors and saturation.",
    (
        (
            "Traffic",
            (
                Chart(
                    "Requests by outcome",
                    "Answers of /score and the rerank routes.",
                    "reqps",
                    (("{{outcome}}", rate("relevance_requests_total", "outcome", SCORING)),),
                ),
                Chart(
                    "Requests by size class",
                    "none: refused before its items were known.",
                    "reqps",
                    (
                        (
                            "{{size_class}}",
                            rate("relevance_request_duration_seconds_count", "size_class", SCORING, _SIZE),
                        ),
                    ),
                ),
                Chart(
                    "Pairs by outcome",
                    "scored: kept; filtered: scored and dropped; the rest came back without a score.",
                    "ops",
                    (("{{outcome}}", rate("relevance_pairs_total", "outcome")),),
                ),
            ),
        ),
        (
            "Latency",
            (
                *(
                    Chart(
                        f"p{100 * q:g} by size class",
                        "First byte of the request to last byte of the answer, rejected requests included.",
                        "s",
                        (
                            (
                                "{{size_class}}",
                                quantile(q, "relevance_request_duration_seconds", "size_class", SCORING, _SIZE),
                            ),
                        ),
                    )
                    for q in (0.5, 0.95, 0.99)
                ),
                Chart(
                    "p99 by stage",
                    "Where the time goes: waiting, tokenising, the engine, calibration and policy.",
                    "s",
                    (("{{stage}}", quantile(0.99, "relevance_stage_duration_seconds", "stage")),),
                ),
                Chart("Items per request", "Quantiles.", "short", quantiles("relevance_items_per_request")),
                Chart(
                    "Event loop lag, p99",
                    "How late probes and answers are.",
                    "s",
                    (("{{pod}}", f"{LOOP_LAG}{{{POD}}}"),),
                    MAX_LOOP_LAG_S,
                ),
            ),
        ),
        (
            "Errors",
            (
                Chart(
                    "Requests by status",
                    "Answers of /score and the rerank routes other than 200.",
                    "reqps",
                    (("{{code}}", rate("relevance_requests_total", "code", SCORING, 'code!="200"')),),
                ),
                Chart(
                    "Share of 5xx",
                    "Of the answers that count for availability.",
                    "percentunit",
                    (("{{namespace}}", f'{ratio_name("5m")}{{{IN},slo="availability"}}'),),
                    AVAILABILITY.budget,
                ),
                Chart(
                    "Ended unanswered or short",
                    "cancelled: the client left; expired: its deadline passed.",
                    "reqps",
                    (("{{kind}}", rate("relevance_dropped_requests_total", "kind")),),
                ),
            ),
        ),
        (
            "Saturation",
            (
                Chart(
                    "Estimated wait",
                    "Queued tokens over measured tokens a second: what autoscaling looks at.",
                    "s",
                    by_pod("relevance_estimated_wait_seconds"),
                ),
                Chart(
                    "Oldest waiting request",
                    "Age. Tickets are opened from half of the default deadline on.",
                    "s",
                    by_pod("relevance_queue_oldest_age_seconds"),
                ),
                Chart(
                    "Requests in flight",
                    "Being answered, of any route.",
                    "short",
                    by_pod("relevance_inflight_requests"),
                ),
            ),
        ),
    ),
    ("size_class",),
)
BATCHER = Board(
    "relevance-batcher",
    "Relevance: batcher",
    "Queue, batches and caches of each replica.",
    (
        (
            "Queue",
            (
                Chart(
                    "Queued tokens",
                    "Estimated tokens of admitted pairs not yet run.",
                    "short",
                    by_pod("relevance_queue_tokens"),
                ),
                Chart("Admitted requests", "Not yet answered.", "short", by_pod("relevance_queue_requests")),
                Chart(
                    "Time in the queue",
                    "Quantiles over requests.",
                    "s",
                    quantiles("relevance_stage_duration_seconds", 'stage="queue"'),
                ),
            ),
        ),
        (
            "Batches",
            (
                Chart(
                    "Tokens of a batch",
                    "Pairs × padded length, quantiles.",
                    "short",
                    quantiles("relevance_batch_tokens"),
                ),
                Chart(
                    "Padding",
                    "Mean share of a batch that is padding.",
                    "percentunit",
                    (("{{namespace}}", f"{PADDING}{{{IN}}}"),),
                    MAX_PADDING_RATIO,
                ),
                Chart("Batches in a session", "Now.", "short", by_pod("relevance_inflight_batches")),
                Chart(
                    "Oldest batch",
                    "Age of the oldest batch in a session; from half of RELEVANCE_HANG_S liveness is off.",
                    "s",
                    by_pod("relevance_oldest_batch_age_seconds"),
                    15,
                ),
                Chart(
                    "Batches per second",
                    "That came back.",
                    "ops",
                    (("{{pod}}", rate("relevance_batch_tokens_count", "pod")),),
                ),
                Chart(
                    "Time in tokenisation",
                    "Quantiles over requests.",
                    "s",
                    quantiles("relevance_stage_duration_seconds", 'stage="tokenize"'),
                ),
            ),
        ),
        (
            "Caches",
            (
                Chart(
                    "Hit rate by tier",
                    "local: in the process; shared: Redis, asked for what that lacks. Empty where a tier is off.",
                    "percentunit",
                    (
                        (
                            "{{tier}}",
                            f"{_HITS} / ({_HITS} + {_MISSES})",
                        ),
                    ),
                ),
                Chart(
                    "Bytes held",
                    "Estimated.",
                    "bytes",
                    (("{{cache}}", f"sum by (cache) (relevance_cache_bytes{{{POD}}})"),),
                ),
                Chart(
                    "Entries held",
                    "Pairs, and items' token ids.",
                    "short",
                    (("{{cache}}", f"sum by (cache) (relevance_cache_entries{{{POD}}})"),),
                ),
                Chart(
                    "Redis errors",
                    "Each is a miss.",
                    "ops",
                    (("{{kind}}", rate("relevance_shared_cache_errors_total", "kind")),),
                ),
                Chart(
                    "Redis look-ups",
                    "Quantiles of one look-up; empty without Redis.",
                    "s",
                    quantiles("relevance_shared_cache_duration_seconds"),
                ),
                Chart(
                    "Explained requests",
                    "Explained answers over all requests, lost ones too. They read no cached pair and take longer.",
                    "percentunit",
                    (("explained", f"{total('relevance_explained_requests_total')} / {answered()}"),),
                ),
            ),
        ),
    ),
)
ENGINE = Board(
    "relevance-engine",
    "Relevance: engine",
    "What is served, how fast it computes, and whether it works.",
    (
        (
            "What is served",
            (
                Chart(
                    "Served",
                    "Bundle, precision, provider and policy of the replicas: one, except during a rollout.",
                    "short",
                    (
                        (
                            "{{bundle}} {{precision}} {{provider}} {{policy}}",
                            f"count by (bundle, precision, provider, policy) (relevance_model_info{{{POD}}})",
                        ),
                    ),
                    number=True,
                ),
                Chart("Ready", "1 while readiness is true.", "bool", by_pod("relevance_ready"), 1, bad_below=True),
                Chart(
                    "Kill switch", "1 while every item is kept, unscored.", "bool", by_pod("relevance_passthrough"), 1
                ),
            ),
        ),
        (
            "Speed",
            (
                Chart(
                    "Measured speed",
                    "Real tokens a second of all engines of a replica.",
                    "ops",
                    by_pod("relevance_tokens_per_second"),
                ),
                Chart(
                    "Engines busy",
                    "Seconds in a session per second: at the number of engines the replica is saturated.",
                    "short",
                    (
                        ("{{pod}}", rate("relevance_engine_busy_seconds_total", "pod")),
                        ("threads {{pod}}", f"relevance_cpu_quota_threads{{{POD}}}"),
                    ),
                ),
                Chart(
                    "Seconds of a batch",
                    "Mean.",
                    "s",
                    (
                        (
                            "{{pod}}",
                            f"{_BUSY} / {rate('relevance_batch_tokens_count', 'pod')}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Health",
            (
                Chart(
                    "Failed batches",
                    "exception: of the session; nan: logits that are not numbers; canary: of the idle probe.",
                    "ops",
                    (("{{kind}}", rate("relevance_engine_failures_total", "kind")),),
                ),
                Chart(
                    "Error of the golden replay",
                    "Largest |Δlogit| at the start, against the manifest's tolerance.",
                    "short",
                    by_pod("relevance_parity_max_abs_error"),
                ),
                Chart(
                    "Reloads",
                    "By outcome, in the last hour.",
                    "short",
                    (("{{outcome}}", f"sum by (outcome) (increase(relevance_reloads_total{{{POD}}}[1h]))"),),
                ),
            ),
        ),
    ),
)
