"""What became of the calls of a load test: figures by phase and size, and the thresholds that fail the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.locust.arrivals import OVERLOAD
from benchmarks.measure import figure, p99

SHED = 429
OVERLOAD_PHASE = "overload"
WARM = "warm"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call.

    Args: kind: `warm` if it repeated an answered call, else the phase it was due in; late_s: how long after its time it
        was sent; latency_s: from its scheduled time; status: 0 = no answer; scored: pairs; computed: tokens that were
        computed on, 0 if every pair came from a cache; ended_s: when it was answered, from the beginning of its phase.
    """

    kind: str
    size: int
    late_s: float
    latency_s: float
    status: int
    retry_after: bool
    scored: int
    computed: int
    ended_s: float

    @property
    def whole(self) -> bool:
        """Whether all its pairs were scored."""
        return self.status == 200 and self.scored == self.size

    @property
    def from_cache(self) -> bool:
        """Whether all its pairs were scored and none computed."""
        return self.whole and not self.computed

    @property
    def shed_as_expected(self) -> bool:
        """Whether it was refused under overload, and told when to come back."""
        return self.kind == OVERLOAD_PHASE and self.status == SHED and self.retry_after

    @property
    def failed(self) -> bool:
        """Whether pairs of it were not scored, unless it was under overload: answered in part or shed as expected."""
        if self.kind == OVERLOAD_PHASE:
            return self.status != 200 and not self.shed_as_expected
        return not self.whole


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the outcomes are held against.

    Args: limits_s: what the p99 of answers of a size may be, in every phase but overload; error_ratio: share of the
        calls outside overload of which pairs may not be scored; goodput: pairs of calls that were wholly scored in
        time under overload, over what capacity and the calls that came allow; cached: share of the repeats that come
        wholly from the cache, None if it is not held against anything.
    """

    limits_s: Mapping[int, float]
    error_ratio: float
    goodput: float
    cached: float | None


def verdicts(outcomes: Sequence[Outcome], thresholds: Thresholds, over: Mapping[str, float]) -> list[dict[str, Any]]:
    """Hold every threshold against the outcomes: what it is about, its bound, what was found, whether it was kept.

    Args: over: what `overload` gave.
    """
    outside = [o for o in outcomes if o.kind != OVERLOAD_PHASE]
    errors = sum(o.failed for o in outside) / max(1, len(outside))
    broken = sum(o.status >= 500 or o.status == 0 for o in outcomes)
    silent = sum(o.status == SHED and not o.retry_after for o in outcomes)
    found = [
        ("calls wholly scored", 1, sum(o.whole for o in outcomes), False),
        ("share of errors outside overload", thresholds.error_ratio, errors, True),
        ("answers 5xx or none", 0, broken, True),
        ("429 without Retry-After", 0, silent, True),
    ]
    if over["calls"]:
        bound = thresholds.goodput * min(1.0, over["offered_over_capacity"])
        found.append(("goodput over capacity under overload", bound, over["goodput_over_capacity"], False))
    if thresholds.cached is not None:
        repeats = [o for o in outcomes if o.kind == WARM]
        cached = sum(o.from_cache for o in repeats) / max(1, len(repeats))
        found.append(("share of repeats wholly from the cache", thresholds.cached, cached, False))
    for kind, size in sorted({(o.kind, o.size) for o in outside}):
        answered = [o.latency_s for o in outside if (o.kind, o.size, o.status) == (kind, size, 200)]
        if answered:
            bound, value = 1000 * thresholds.limits_s[size], 1000 * float(p99(np.array(answered)))
            found.append((f"p99 in ms of {size} items, {kind}", bound, value, True))
    return [
        {"about": about, "bound": bound, "found": value, "kept": value <= bound if at_most else value >= bound}
        for about, bound, value, at_most in found
    ]


def by_kind(outcomes: Sequence[Outcome], thresholds: Thresholds) -> dict[str, dict[str, Any]]:
    """Give the figures of each kind of call, by size."""
    told: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(o.kind for o in outcomes):
        told[kind] = {}
        for size in sorted({o.size for o in outcomes if o.kind == kind}):
            chosen = [o for o in outcomes if (o.kind, o.size) == (kind, size)]
            limit_ms = None if kind == OVERLOAD_PHASE else 1000 * thresholds.limits_s[size]
            told[kind][f"{size}_items"] = _figures(chosen, limit_ms)
    return told


def overload(outcomes: Sequence[Outcome], thresholds: Thresholds, *, capacity: float, seconds: float) -> dict[str, Any]:
    """Give what was offered under overload and what of it was wholly scored in time (goodput), over capacity.

    Answers that came when the overload was over are no goodput: they were computed when nothing else was offered.

    Args: capacity: pairs a second; seconds: that the overload lasted.
    """
    chosen = [o for o in outcomes if o.kind == OVERLOAD_PHASE]
    in_time = sum(
        o.size for o in chosen if o.whole and o.ended_s <= seconds and o.latency_s <= thresholds.limits_s[o.size]
    )
    return {
        "aimed_at": OVERLOAD,
        "offered_over_capacity": sum(o.size for o in chosen) / seconds / capacity,
        "goodput_over_capacity": in_time / seconds / capacity,
        "shed": sum(o.status == SHED for o in chosen),
        "calls": len(chosen),
    }


def _figures(chosen: Sequence[Outcome], limit_ms: float | None) -> dict[str, Any]:
    answered_ms = [1000 * o.latency_s for o in chosen if o.status == 200]
    told: dict[str, Any] = {
        "calls": len(chosen),
        "answers": {str(status): n for status, n in sorted(Counter(o.status for o in chosen).items())},
        "wholly_from_cache": sum(o.from_cache for o in chosen),
        "partial": sum(o.status == 200 and not o.whole for o in chosen),
    }
    if answered_ms:
        told |= {f"p{q}_ms": float(np.quantile(answered_ms, q / 100)) for q in (50, 95)}
        told["p99_ms"] = asdict(figure(answered_ms, statistic=p99, at_most=limit_ms))
    return told
