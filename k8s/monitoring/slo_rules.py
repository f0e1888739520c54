"""Service level indicators and burn-rate alerts.

Every indicator is recorded as two rates over five minutes, `relevance:slo_bad:rate5m` and
`relevance:slo_events:rate5m`, with labels `slo` and, for latency, `size_class`. Longer windows add these up, which
weighs every event alike and costs little, whatever the window; a sum knows nothing of hours before the first sample,
so a new service has few events and not an hour full of those of its first minutes. What builds on each other is in one
group, whose rules are evaluated in their order and at the same instant.
"""

from __future__ import annotations

from k8s.monitoring.objectives import (
    AVAILABILITY,
    BURNS,
    EVALUATION_S,
    LATENCY,
    LATENCY_BOUNDS,
    SCORED,
    SCORING,
    WINDOWS,
    Burn,
    Objective,
)
from k8s.monitoring.rule_files import Group, Rule, alert, group, record

BAD = "relevance:slo_bad:rate5m"
EVENTS = "relevance:slo_events:rate5m"
COUNT = "relevance_request_duration_seconds_count"
BUCKET = "relevance_request_duration_seconds_bucket"
UNSCORED = "expired|nan|error"


def ratio_name(window: str) -> str:
    """Give the name under which the share of bad events over a window is recorded."""
    return f"relevance:slo_error:ratio_rate{window}"


def slo_groups(runbook: str) -> list[Group]:
    """Give the indicators that do not depend on the machine, their shares over all windows, and their alerts.

    Requests that the client got wrong (4xx), gave up (499) or that were shed (429, an alert of its own) are no events
    of availability. Availability knows no size class: what fails before its body is read has none. Pairs shed with
    their request, given up by their client or passed through by the kill switch are no events of `scored`. A status
    that was never given has no series, so the failures start at 0 with the first answer.
    """
    served = f'relevance_requests_total{{{SCORING},code!~"4.."}}'
    failed = f'relevance_requests_total{{{SCORING},code=~"5.."}}'
    all_pairs = f'relevance_pairs_total{{outcome=~"scored|filtered|{UNSCORED}"}}'
    unscored = f'relevance_pairs_total{{outcome=~"{UNSCORED}"}}'
    indicators = [
        record(
            BAD,
            f"sum by (namespace) (rate({failed}[5m])) or 0 * sum by (namespace) (rate({served}[5m]))",
            slo=AVAILABILITY.slo,
        ),
        record(EVENTS, f"sum by (namespace) (rate({served}[5m]))", slo=AVAILABILITY.slo),
        record(BAD, f"sum by (namespace) (rate({unscored}[5m]))", slo=SCORED.slo),
        record(EVENTS, f"sum by (namespace) (rate({all_pairs}[5m]))", slo=SCORED.slo),
    ]
    objectives = (AVAILABILITY, SCORED)
    shares = _shares(f'slo=~"{"|".join(objective.slo for objective in objectives)}"')
    alerts = [rule for objective in objectives for rule in _burn_alerts(objective, runbook)]
    return [group("relevance-slo", indicators + shares + alerts, interval_s=EVALUATION_S)]


def latency_groups(machine: str, runbook: str) -> list[Group]:
    """Give the latency indicator by size class, with the bounds of a kind of machine, and its alerts."""
    indicators = []
    for size, bound in LATENCY_BOUNDS[machine].items():
        labels = f'{SCORING},size_class="{size}"'
        total = f"sum by (namespace) (rate({COUNT}{{{labels}}}[5m]))"
        fast = f'sum by (namespace) (rate({BUCKET}{{{labels},le="{bound}"}}[5m]))'
        indicators += [
            record(BAD, f"{total} - {fast}", slo=LATENCY.slo, size_class=size),
            record(EVENTS, total, slo=LATENCY.slo, size_class=size),
        ]
    shares = _shares(f'slo="{LATENCY.slo}"')
    alerts = _burn_alerts(LATENCY, runbook)
    return [group("relevance-latency", indicators + shares + alerts, interval_s=EVALUATION_S)]


def _shares(which: str) -> list[Rule]:
    bad, events = f"{BAD}{{{which}}}", f"{EVENTS}{{{which}}}"
    now, *longer = WINDOWS
    return [
        record(ratio_name(now), f"{bad} / {events}"),
        *(
            record(ratio_name(window), f"sum_over_time({bad}[{window}]) / sum_over_time({events}[{window}])")
            for window in longer
        ),
    ]


def _burn_alerts(objective: Objective, runbook: str) -> list[Rule]:
    return [_burn_alert(objective, burn, runbook) for burn in BURNS]


def _burn_alert(objective: Objective, burn: Burn, runbook: str) -> Rule:
    slo = f'slo="{objective.slo}"'
    most = f"{burn.factor * objective.budget:g}"
    expr = (
        f"{ratio_name(burn.long)}{{{slo}}} > {most}\n"
        f"and {ratio_name(burn.short)}{{{slo}}} > {most}\n"
        f"and sum_over_time({EVENTS}{{{slo}}}[{burn.long}]) * {EVALUATION_S} >= {objective.min_events}"
    )
    of = " of size class {{ $labels.size_class }}" if objective.slo == LATENCY.slo else ""
    what = "pairs" if objective.slo == SCORED.slo else "requests"
    summary = f"The {objective.slo} budget{of} burns at more than {burn.factor:g} × the sustainable rate"
    description = (
        f"{{{{ $value | humanizePercentage }}}} of {what}{of} in the last {burn.long} were {objective.bad}; the "
        f"objective allows {objective.budget * 100:g} %. Namespace: {{{{ $labels.namespace }}}}."
    )
    return alert(
        objective.alert,
        expr,
        severity=burn.severity,
        texts=(summary, description),
        runbook=runbook,
        burn_rate=f"{burn.factor:g}",
    )
