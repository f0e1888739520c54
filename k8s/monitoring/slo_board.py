"""The dashboard of objectives and budgets."""

from __future__ import annotations

from k8s.monitoring.cause_rules import SHED
from k8s.monitoring.objectives import BURNS, MAX_SHED_RATIO, OBJECTIVES, PERIOD, Objective
from k8s.monitoring.panels import Board, Chart
from k8s.monitoring.queries import IN
from k8s.monitoring.slo_rules import BAD, EVENTS, ratio_name

_FAST, _SLOW = BURNS[0], BURNS[1]


def _per_slo(slo: Objective) -> str:
    return "{{namespace}} {{size_class}}" if slo.slo == "latency" else "{{namespace}}"


def _good(slo: Objective) -> Chart:
    bad, events = (f'sum_over_time({name}{{{IN},slo="{slo.slo}"}}[{PERIOD}])' for name in (BAD, EVENTS))
    return Chart(
        f"{slo.slo.capitalize()}, {PERIOD}",
        f"Share of good events in {PERIOD}; bad is what was {slo.bad}. Objective {slo.target:.2%}.",
        "percentunit",
        ((_per_slo(slo), f"1 - {bad} / {events}"),),
        slo.target,
        bad_below=True,
        number=True,
    )


def _left(slo: Objective) -> Chart:
    bad, events = (f'sum_over_time({name}{{{IN},slo="{slo.slo}"}}[{PERIOD}])' for name in (BAD, EVENTS))
    return Chart(
        f"{slo.slo.capitalize()}: budget left",
        f"1 is an untouched budget of {PERIOD}, 0 a spent one, less than 0 an objective missed.",
        "percentunit",
        ((_per_slo(slo), f"1 - ({bad} / {events}) / {slo.budget:g}"),),
        0,
        bad_below=True,
        number=True,
    )


def _burning(slo: Objective) -> Chart:
    return Chart(
        f"{slo.slo.capitalize()}: burn rate",
        f"1 spends the budget in {PERIOD}. At {_FAST.factor:g} over {_FAST.long} or {_SLOW.factor:g} over {_SLOW.long} "
        "somebody is paged.",
        "short",
        tuple(
            (f"{burn.long} {_per_slo(slo)}", f'{ratio_name(burn.long)}{{{IN},slo="{slo.slo}"}} / {slo.budget:g}')
            for burn in BURNS
        ),
        _SLOW.factor,
    )


SLO = Board(
    "relevance-slo",
    "Relevance: SLO and budget",
    "Whether the service keeps its promises, and how fast their budgets go.",
    (
        (f"Kept over {PERIOD}", tuple(_good(slo) for slo in OBJECTIVES)),
        ("Budget left", tuple(_left(slo) for slo in OBJECTIVES)),
        ("Burn rates", tuple(_burning(slo) for slo in OBJECTIVES)),
        (
            "Behind them",
            (
                Chart(
                    "Events",
                    "What the objectives count: requests, or pairs. Alerts say nothing when there are few.",
                    "ops",
                    (("{{slo}} {{size_class}}", f"sum by (slo, size_class) ({EVENTS}{{{IN}}})"),),
                ),
                Chart(
                    "Rejected by admission",
                    "Share of 429 answers: a budget of its own, because a replica that sheds works as it should.",
                    "percentunit",
                    (("{{namespace}}", f"{SHED}{{{IN}}}"),),
                    MAX_SHED_RATIO,
                ),
                Chart(
                    "Replicas ready",
                    "Replicas whose readiness is true.",
                    "short",
                    (("ready", f"sum(relevance_ready{{{IN}}})"),),
                    1,
                    bad_below=True,
                ),
            ),
        ),
    ),
)
