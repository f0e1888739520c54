"""What the service promises and from when on somebody is told: the numbers behind rules and dashboards."""

from __future__ import annotations

from dataclasses import dataclass

RUNBOOK = "docs/runbook.md"
"""Where the runbook stands; `python -m k8s.monitoring --runbook URL` writes another address into the rules."""
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
SECONDS = {"30m": 1_800, "1h": 3_600, "2h": 7_200, "6h": 21_600, "1d": 86_400, "3d": 259_200}
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

LATENCY_BOUNDS = {
    "cpu": {"s": "0.15", "m": "0.5", "l": "2.0"},
    "gpu": {"s": "0.05", "m": "0.05", "l": "0.1", "xl": "0.3"},
}
"""Seconds by size class, each an edge of the histogram, whose last one is 5 s: beyond it (xl on a CPU) no promise."""

MAX_SHED_RATIO = 0.01
MAX_WAIT_S = 1.0
MAX_QUEUE_AGE_S = 5.0
MAX_LOOP_LAG_S = 0.1
MAX_PADDING_RATIO = 0.5
MAX_REDIS_ERRORS = 10
MAX_PSI = 0.2
MAX_LOW_TIER_SHIFT = 0.15
MIN_LOCALE_PAIRS = 5_000
MAX_FLIP_RATIO = 0.05
MIN_SHADOW_PAIRS = 1_000
