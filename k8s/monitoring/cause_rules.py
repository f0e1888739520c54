"""Alerts on causes: what is wrong inside, mostly before clients notice.

Those that page say that nothing or nothing right is being answered. Not here, because the service has no instrument of
it: container restarts, CPU throttling and GPU faults (kube-state-metrics, cAdvisor and DCGM have), certificates (TLS
ends before the service).
"""

from __future__ import annotations

from typing import NamedTuple

from k8s.monitoring.objectives import (
    DEADLINES_S,
    JOB,
    MAX_FLIP_RATIO,
    MAX_LOOP_LAG_S,
    MAX_LOW_TIER_SHIFT,
    MAX_PADDING_RATIO,
    MAX_PSI,
    MAX_REDIS_ERRORS,
    MAX_SHED_RATIO,
    MAX_WAIT_RATIO,
    MIN_LOCALE_PAIRS,
    MIN_MEAN_READY,
    MIN_REPLICAS,
    MIN_SHADOW_PAIRS,
    MIN_UP_RATIO,
    SCORING,
)
from k8s.monitoring.rule_files import Group, Rule, alert, group, record

SHED = "relevance:shed:ratio_rate10m"
LOW_TIERS = "relevance:low_tiers:ratio_rate"
FLIPS = "relevance:shadow_flips:ratio_rate1h"
PADDING = "relevance:padding:mean_rate30m"
LOOP_LAG = "relevance:event_loop_lag_seconds:p99_rate5m"
READY = "relevance:replicas_ready:mean3m"
_UP = f'up{{job="{JOB}"}}'
_STABLE_UP = f'up{{job="{JOB}",relevance_tiers_track!="canary"}}'


_A_POD = "max by (namespace, pod)"
"""A pod may be several targets: after it got another address, or where two Services select it."""


class _Alert(NamedTuple):
    name: str
    severity: str
    after: str
    expr: str
    summary: str
    description: str


_ANSWERING = (
    _Alert(
        "RelevanceAbsent",
        "page",
        "5m",
        f"absent({_UP})\nor group by (namespace) (last_over_time({_UP}[6h])) unless group by (namespace) ({_UP})",
        "Prometheus sees no replica at all",
        f"No target of job {JOB}{{{{ with $labels.namespace }}}} in namespace {{{{ . }}}}{{{{ end }}}} for 5 minutes: "
        "no pod runs, or none is found.",
    ),
    _Alert(
        "RelevanceNoReplicaReady",
        "page",
        "1m",
        f"{READY} < {MIN_MEAN_READY:g}",
        "No replica is ready",
        "In namespace {{ $labels.namespace }} {{ $value | humanize }} replicas were ready on average over 3 minutes: "
        "they are not ready, do not answer, or start again and again.",
    ),
    _Alert(
        "RelevanceReplicaNotReady",
        "ticket",
        "35m",
        "relevance_ready < 1",
        "A replica is not ready",
        "Pod {{ $labels.pod }} has not been ready for 35 minutes, longer than a start, the building of TensorRT's "
        "engines (30 minutes) or a drain takes.",
    ),
    _Alert(
        "RelevanceReplicaDown",
        "ticket",
        "10m",
        f"avg_over_time({_UP}[15m]) < {MIN_UP_RATIO:g} and avg_over_time({_UP}[5m]) < {MIN_UP_RATIO:g}",
        "A replica does not answer its scrapes",
        "Pod {{ $labels.pod }} answered {{ $value | humanizePercentage }} of the scrapes of 15 minutes: it starts "
        "again and again, hangs, or cannot be reached.",
    ),
    _Alert(
        "RelevanceReplicaMissing",
        "ticket",
        "15m",
        f"sum by (namespace) ({_A_POD} (avg_over_time({_STABLE_UP}[10m]))) < {MIN_REPLICAS - 0.5:g}",
        "Fewer replicas than the autoscaler's minimum",
        f"Namespace {{{{ $labels.namespace }}}}: {{{{ $value | humanize }}}} replicas answer, "
        f"{MIN_REPLICAS} are the least.",
    ),
    _Alert(
        "RelevanceBatcherStuck",
        "page",
        "2m",
        "relevance_queue_tokens > 0 and rate(relevance_engine_busy_seconds_total[2m]) == 0",
        "A replica has work and computes nothing",
        "Pod {{ $labels.pod }} has {{ $value }} tokens queued, and no batch has come back for 2 minutes.",
    ),
    _Alert(
        "RelevanceNotANumber",
        "page",
        "",
        'sum by (namespace, pod) (increase(relevance_engine_failures_total{kind="nan"}[10m])) > 0',
        "The model gives logits that are not numbers",
        "Pod {{ $labels.pod }}: {{ $value }} batches in 10 minutes. Their pairs are given back unscored.",
    ),
    _Alert(
        "RelevanceEngineFailures",
        "ticket",
        "5m",
        'sum by (namespace, pod, kind) (increase(relevance_engine_failures_total{kind!="nan"}[15m])) > 0',
        "Batches fail",
        "Pod {{ $labels.pod }}: {{ $value }} failures of kind {{ $labels.kind }} in 15 minutes.",
    ),
)
_SATURATION = (
    _Alert(
        "RelevanceShed",
        "ticket",
        "10m",
        f"{SHED} > {MAX_SHED_RATIO:g}",
        "Requests are rejected by admission",
        "{{ $value | humanizePercentage }} of the requests of namespace {{ $labels.namespace }} were answered 429.",
    ),
    _Alert(
        "RelevanceEventLoopLag",
        "ticket",
        "10m",
        f"{LOOP_LAG} > {MAX_LOOP_LAG_S:g}",
        "The event loop is late",
        "Pod {{ $labels.pod }}: p99 lag {{ $value | humanizeDuration }}; probes and answers are as late as that.",
    ),
    _Alert(
        "RelevancePadding",
        "ticket",
        "1h",
        f"{PADDING} > {MAX_PADDING_RATIO:g}",
        "Most of what is computed is padding",
        "{{ $value | humanizePercentage }} of the tokens that namespace {{ $labels.namespace }} computes are padding.",
    ),
    _Alert(
        "RelevanceRedisErrors",
        "ticket",
        "5m",
        f"sum by (namespace, pod, kind) (increase(relevance_shared_cache_errors_total[15m])) > {MAX_REDIS_ERRORS}",
        "The shared cache fails; the service goes on without it",
        "Pod {{ $labels.pod }}: {{ $value }} errors of kind {{ $labels.kind }} in 15 minutes, each a miss.",
    ),
)
_SERVED = (
    _Alert(
        "RelevanceReplicasDiffer",
        "ticket",
        "30m",
        "count by (namespace, relevance_tiers_track) (count by (namespace, relevance_tiers_track, bundle, precision, "
        "provider, calibration, policy) (relevance_model_info)) > 1",
        "Replicas serve different things",
        "Namespace {{ $labels.namespace }}, track {{ $labels.relevance_tiers_track }}: {{ $value }} different pairs of "
        "bundle and policy, precisions or providers for 30 minutes.",
    ),
    _Alert(
        "RelevanceFp32",
        "ticket",
        "30m",
        'relevance_model_info{precision="fp32"}',
        "A replica serves the fp32 graph",
        "Pod {{ $labels.pod }} serves bundle {{ $labels.bundle }} in fp32: no faster graph passed its gate.",
    ),
    _Alert(
        "RelevancePassthrough",
        "ticket",
        "15m",
        "relevance_passthrough > 0",
        "The kill switch is on",
        "Pod {{ $labels.pod }} has kept every item unscored for 15 minutes.",
    ),
    _Alert(
        "RelevanceReloadRefused",
        "ticket",
        "",
        'sum by (namespace, pod) (increase(relevance_reloads_total{outcome="refused"}[30m])) > 0',
        "A reload was refused",
        "Pod {{ $labels.pod }} goes on with the bundle it had.",
    ),
    _Alert(
        "RelevanceDrift",
        "ticket",
        "30m",
        f"max by (namespace, what, locale) (relevance_drift_psi) > {MAX_PSI:g}",
        "Recent pairs are unlike the bundle's baseline",
        "Namespace {{ $labels.namespace }}, locale {{ $labels.locale }}: index {{ $value }} of {{ $labels.what }}.",
    ),
    _Alert(
        "RelevanceLowTierShift",
        "ticket",
        "30m",
        f"abs({LOW_TIERS}1h - {LOW_TIERS}1d) > {MAX_LOW_TIER_SHIFT:g}\n"
        f"and sum by (namespace, locale) (increase(relevance_tier_total[1h])) >= {MIN_LOCALE_PAIRS}",
        "Much more or much less is filtered than a day before",
        "Namespace {{ $labels.namespace }}, locale {{ $labels.locale }}: the share of pairs in tiers 0 and 1 differs "
        "by {{ $value | humanizePercentage }} from that of the last day.",
    ),
    _Alert(
        "RelevanceShadowDisagrees",
        "ticket",
        "30m",
        f"{FLIPS} > {MAX_FLIP_RATIO:g}\n"
        'and sum by (namespace) (increase(relevance_shadow_pairs_total{outcome="scored"}[1h]))'
        f" >= {MIN_SHADOW_PAIRS}",
        "The shadow bundle puts many pairs into other tiers",
        "{{ $value | humanizePercentage }} of the compared pairs of namespace {{ $labels.namespace }} in an hour.",
    ),
    _Alert(
        "RelevanceShadowFails",
        "ticket",
        "15m",
        'sum by (namespace, pod) (increase(relevance_shadow_pairs_total{outcome="failed"}[15m])) > 0',
        "The shadow bundle fails",
        "Pod {{ $labels.pod }}: {{ $value }} pairs in 15 minutes; answers to clients are not touched.",
    ),
    _Alert(
        "RelevancePairLogDrops",
        "ticket",
        "15m",
        'sum by (namespace, pod) (increase(relevance_pair_log_rows_total{outcome="dropped"}[15m])) > 0',
        "The pair log loses samples",
        "Pod {{ $labels.pod }}: {{ $value }} pairs in 15 minutes; answers to clients are not touched.",
    ),
)


def cause_groups(runbook: str) -> list[Group]:
    """Give the shares that alerts compare, and the alerts."""
    rows = (*_ANSWERING, *_SATURATION, *_SERVED)
    return [group("relevance-causes", _shares() + [_rule(row, runbook) for row in rows])]


def waiting_groups(machine: str, runbook: str) -> list[Group]:
    """Give the alerts on waits that are long against the default deadline of a kind of machine."""
    most = f"{MAX_WAIT_RATIO * DEADLINES_S[machine]:g}"
    rows = (
        _Alert(
            "RelevanceEstimatedWait",
            "ticket",
            "10m",
            f"avg by (namespace) (relevance_estimated_wait_seconds) > {most}",
            "Replicas are saturated",
            "A new request of namespace {{ $labels.namespace }} would wait {{ $value | humanizeDuration }} on average.",
        ),
        _Alert(
            "RelevanceQueueAge",
            "ticket",
            "5m",
            f"relevance_queue_oldest_age_seconds > {most}",
            "Requests wait long for an engine",
            "Pod {{ $labels.pod }}: the oldest waiting request is {{ $value | humanizeDuration }} old.",
        ),
    )
    return [group("relevance-waiting", [_rule(row, runbook) for row in rows])]


def _rule(row: _Alert, runbook: str) -> Rule:
    return alert(
        row.name,
        row.expr,
        severity=row.severity,
        texts=(row.summary, row.description),
        runbook=runbook,
        after=row.after,
    )


def _shares() -> list[Rule]:
    score = f"relevance_requests_total{{{SCORING}"
    shares = [
        record(
            SHED,
            f'sum by (namespace) (rate({score},code="429"}}[10m])) / sum by (namespace) (rate({score}}}[10m]))',
        ),
        record(
            FLIPS,
            "sum by (namespace) (rate(relevance_shadow_tier_flips_total[1h]))"
            ' / sum by (namespace) (rate(relevance_shadow_pairs_total{outcome="scored"}[1h]))',
        ),
        record(
            PADDING,
            "sum by (namespace) (rate(relevance_batch_padding_ratio_sum[30m]))"
            " / sum by (namespace) (rate(relevance_batch_padding_ratio_count[30m]))",
        ),
        record(
            LOOP_LAG,
            "histogram_quantile(0.99, sum by (namespace, relevance_tiers_track, pod, le) "
            "(rate(relevance_event_loop_lag_seconds_bucket[5m])))",
        ),
        record(
            READY,
            f"sum by (namespace) ({_A_POD} (sum_over_time(relevance_ready[3m]))"
            f" / {_A_POD} (count_over_time({_UP}[3m])))"
            f" or 0 * sum by (namespace) (count_over_time({_UP}[3m]))",
        ),
    ]
    for window in ("1h", "1d"):
        by = "sum by (namespace, locale)"
        low = f'{by} (rate(relevance_tier_total{{tier=~"0|1"}}[{window}]))'
        shares.append(record(f"{LOW_TIERS}{window}", f"{low} / {by} (rate(relevance_tier_total[{window}]))"))
    return shares
