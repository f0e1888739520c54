"""What the service promises and from when on somebody is told: the numbers behind rules and dashboards."""

from __future__ import annotations

from dataclasses import dataclass

RUNBOOK = "docs/runbook.md"
"""Where the runbook stands: the address of your copy goes here."""
RELEASE = "kube-prometheus-stack"
"""Helm release of the Prometheus operator's chart, which reads only what carries its name in the label `release`."""
JOB = "relevance-tiers"
"""What the scrape job is called; the ServiceMonitor calls it so."""
SCORING = 'route=~"/score|(/v[12])?/rerank"'
"""Selects the routes whose answers the objectives are about."""
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
EVALUATION_S = 60
"""Between two samples of a recorded rate: the interval of the groups whose events are counted."""
PERIOD = "30d"
"""What the error budget is for."""


@dataclass(frozen=True, slots=True)
class Burn:
    """An alert on the speed at which the budget goes: at `factor` × the speed that uses up 30 days' budget in 30 days.

    Args: long, short: windows that must both show it: the long one proves that it matters, the short one that it lasts.
    Source: The Site Reliability Workbook (O'Reilly, 2018), chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
    """

    factor: float
    long: str
    short: str
    severity: str


BURNS = (
    Burn(14.4, "1h", "5m", "page"),
    Burn(6, "6h", "30m", "page"),
    Burn(3, "1d", "2h", "ticket"),
    Burn(1, "3d", "6h", "ticket"),
)


@dataclass(frozen=True, slots=True)
class Objective:
    """A service level objective: `target` of all events are good.

    Args: min_events: in an alert's long window; fewer say nothing, so nobody is told.
    """

    slo: str
    alert: str
    target: float
    min_events: int
    bad: str

    @property
    def budget(self) -> float:
        """The share of events that may be bad."""
        return round(1 - self.target, 6)


AVAILABILITY = Objective("availability", "RelevanceAvailabilityBurn", 0.999, 600, "answered with a 5xx status")
SCORED = Objective("scored", "RelevanceUnscoredBurn", 0.995, 6_000, "given back without a score")
LATENCY = Objective("latency", "RelevanceLatencyBurn", 0.99, 600, "answered later than the bound of their size class")
OBJECTIVES = (AVAILABILITY, SCORED, LATENCY)

CPU_PAIRS_PER_S = 208
"""What the embedded default did behind HTTP on two cores (docs/operations.md, Measured under load)."""
LATENCY_BOUNDS = {
    "cpu": {"s": "0.5", "m": "2.0", "l": "5.0"},
    "gpu": {"s": "0.05", "m": "0.05", "l": "0.1", "xl": "0.3"},
}
"""Seconds by size class, each an edge of the histogram, whose last one is 5 s: beyond it (xl on a CPU) no promise.

CPU: at CPU_PAIRS_PER_S the largest request of s, m and l takes 0.24, 0.96 and 4.8 s alone, without a cache; s and m
have twice that. GPU: aims, not measurements.
"""
DEADLINES_S = {"cpu": 5.0, "gpu": 0.5}
"""RELEVANCE_DEFAULT_DEADLINE_MS of the overlays, in seconds."""
MIN_REPLICAS = 3
"""Of the autoscalers."""
MIN_MEAN_READY = 0.5
"""Replicas ready, on average over three minutes."""
MIN_UP_RATIO = 0.8
"""Share of the scrapes of a replica that succeed."""

MAX_SHED_RATIO = 0.01
MAX_WAIT_RATIO = 0.5
"""Of the default deadline."""
MAX_LOOP_LAG_S = 0.1
MAX_PADDING_RATIO = 0.5
MAX_REDIS_ERRORS = 10
MAX_PSI = 0.2
MAX_LOW_TIER_SHIFT = 0.15
MIN_LOCALE_PAIRS = 5_000
MAX_FLIP_RATIO = 0.05
MIN_SHADOW_PAIRS = 1_000
