"""From events to the content of ab.json: every figure, and a verdict only where the experiment deserves one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relevance.errors import InputError
from training.ab.estimate import (
    SRM_ALARM,
    Lift,
    Ratio,
    adjusted_ratios,
    arm_ratio,
    lift_of,
    sample_ratio_p,
)
from training.ab.events import LATENCY, Bools, Events, UserTotals, user_totals
from training.ab.guardrail import latency_change
from training.ab.power import detectable_lift
from training.ab.sequential import FEWEST_USERS, looks
from training.multiplicity import holm

METRICS = {"rpm": ("revenue", 1000.0), "ctr": ("clicks", 1.0), "rs": ("relevant_impressions", 1.0)}
"""Name of a metric → the column above the line and the factor it is shown with."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an experiment.

    Args: control: name of the control; primary: the metric that decides; shares: planned shares by variant, empty for
        equal ones; confidence, power: of intervals and of detectable lifts; planned_lift: turns the always-valid
        reading on, None leaves the fixed-horizon one; seed: of the bootstrap.
    """

    control: str = "control"
    primary: str = "rpm"
    shares: tuple[tuple[str, float], ...] = ()
    confidence: float = 0.95
    power: float = 0.8
    planned_lift: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Estimates:
    """Both readings of one metric in control and treatment; `adjusted` is None without a past."""

    plain: tuple[Ratio, Ratio]
    adjusted: tuple[Ratio, Ratio] | None

    @property
    def best(self) -> tuple[Ratio, Ratio]:
        """The adjusted ratios where there are any."""
        return self.adjusted or self.plain


def analyse(events: Events, question: Question) -> dict[str, Any]:
    """Give the content of ab.json.

    Raises: InputError: if the control, the primary metric or the shares do not fit the events, or an arm is empty.
    """
    control, treatments = _arms(events, question)
    metrics = {name: column for name, (column, _) in METRICS.items() if column in events.values}
    if question.primary not in metrics:
        raise InputError(f"expected a primary metric of {', '.join(metrics)}, found {question.primary!r}")
    check = _sample_ratio(events, question)
    found: dict[str, dict[str, Any]] = {}
    for arm in treatments:
        found[events.variants[arm]] = {
            "metrics": {
                name: _metric(name, _estimates(user_totals(events, column), control, arm), question)
                for name, column in metrics.items()
            },
            "looks": _looks(events, metrics[question.primary], (control, arm), question),
            "latency_p99_ms": _latency(events, (control, arm), question),
        }
    _adjust_for_many(found, question)
    for result in found.values():
        result["verdict"] = _verdict(result, check["alarm"], question)
    segments, too_few = _segments(events, metrics, control, treatments, question)
    return {
        "control": question.control,
        "primary": question.primary,
        "denominator": events.denominator,
        "confidence": question.confidence,
        "power": question.power,
        "planned_lift": question.planned_lift,
        "rows": len(events.user_N),
        "days": {"first": events.days[0], "last": events.days[-1], "n": len(events.days)},
        "users": {name: int(np.sum(events.variant_U == arm)) for arm, name in enumerate(events.variants)},
        "left_out": {"users_of_several_variants": events.crossed, "users_never_exposed": events.unexposed},
        "sample_ratio": check,
        "treatments": found,
        "segments": segments,
        "segments_with_too_few_users": too_few,
    }


def _arms(events: Events, question: Question) -> tuple[int, list[int]]:
    if question.control not in events.variants or len(events.variants) < 2:
        raise InputError(
            f"expected the control {question.control!r} and at least one other variant, found "
            f"{', '.join(events.variants)}"
        )
    control = events.variants.index(question.control)
    return control, [arm for arm in range(len(events.variants)) if arm != control]


def _sample_ratio(events: Events, question: Question) -> dict[str, Any]:
    shares = dict(question.shares) or dict.fromkeys(events.variants, 1.0)
    if sorted(shares) != sorted(events.variants):
        raise InputError(f"expected shares of {', '.join(events.variants)}, found {', '.join(shares)}")
    users = np.bincount(events.variant_U, minlength=len(events.variants)).tolist()
    p = sample_ratio_p(users, [shares[name] for name in events.variants])
    total = sum(shares.values())
    return {"p": p, "alarm": p < SRM_ALARM, "shares": {name: shares[name] / total for name in events.variants}}


def _estimates(totals: UserTotals, control: int, arm: int) -> Estimates:
    arms = (control, arm)
    adjusted = adjusted_ratios(totals, arms)
    return Estimates(
        plain=(arm_ratio(totals, control), arm_ratio(totals, arm)),
        adjusted=None if adjusted is None else (adjusted[0], adjusted[1]),
    )


def _metric(name: str, estimates: Estimates, question: Question) -> dict[str, Any]:
    confidence, scale = question.confidence, METRICS[name][1]
    lifts = [
        None if pair is None else lift_of(pair[1], pair[0], confidence=confidence)
        for pair in (estimates.plain, estimates.adjusted)
    ]
    plain, adjusted = lifts
    best = adjusted or plain
    if best is None or plain is None or np.isnan(best.p):
        raise InputError(f"{name}: expected positive ratios in both arms, found {[r.value for r in estimates.best]}")
    return {
        **{
            arm: {"value": ratio.value * scale, **_ends(ratio.interval(confidence), scale)}
            for arm, ratio in zip(("control", "treatment"), estimates.plain, strict=True)
        },
        "lift": _lift(plain),
        "lift_cuped": None if adjusted is None else _lift(adjusted),
        "variance_removed": None if adjusted is None else 1 - adjusted.variance / plain.variance,
        "p": best.p,
        "detectable_lift": detectable_lift(best.variance, power=question.power, confidence=confidence),
    }


def _looks(events: Events, column: str, arms: tuple[int, int], question: Question) -> list[dict[str, Any]] | None:
    if question.planned_lift is None:
        return None
    if events.days == ("",):
        raise InputError("expected a day or timestamp on the rows for the always-valid reading, found none")
    found = looks(events, column, arms=arms, planned_lift=question.planned_lift, confidence=question.confidence)
    return [{name: getattr(look, name) for name in look.__slots__} for look in found]


def _latency(events: Events, arms: tuple[int, int], question: Question) -> dict[str, Any] | None:
    if LATENCY not in events.values:
        return None
    change = latency_change(events, arms, confidence=question.confidence, seed=question.seed)
    return {
        name: {"value": interval.value, **_ends((interval.low, interval.high))}
        for name, interval in (
            ("control", change.control),
            ("treatment", change.treatment),
            ("difference", change.difference),
        )
    }


def _adjust_for_many(found: dict[str, dict[str, Any]], question: Question) -> None:
    """Add Holm's p: the primary metric over the treatments, the other metrics over all treatments and metrics."""
    primary = [result["metrics"][question.primary] for result in found.values()]
    others = [m for r in found.values() for name, m in r["metrics"].items() if name != question.primary]
    for family in (primary, others):
        for metric, p in zip(family, holm([m["p"] for m in family]), strict=True):
            metric["p_holm"] = p
    if question.planned_lift is not None:
        last = [r["looks"][-1]["p"] if r["looks"] else 1.0 for r in found.values()]
        for result, p in zip(found.values(), holm(last), strict=True):
            result["p_always_valid_holm"] = p


def _verdict(result: dict[str, Any], alarm: bool, question: Question) -> str:
    """Say what the primary metric allows to say; always-valid, by the look that was the clearest."""
    if alarm:
        return "not judged: the users are not split as planned, so the arms may differ in more than the treatment"
    metric = result["metrics"][question.primary]
    p, lift = metric["p_holm"], (metric["lift_cuped"] or metric["lift"])["value"]
    if question.planned_lift is not None:
        p = result["p_always_valid_holm"]
        lift = next((look["value"] for look in result["looks"] if look["p"] == result["looks"][-1]["p"]), lift)
    if p > 1 - question.confidence:
        return "undecided"
    return "better" if lift > 0 else "worse"


def _segments(
    events: Events, metrics: dict[str, str], control: int, treatments: Sequence[int], question: Question
) -> tuple[list[dict[str, Any]], list[str]]:
    """Estimate every metric within every segment; one Holm family over the whole table."""
    table: list[dict[str, Any]] = []
    too_few: list[str] = []
    for segment, texts_N in events.segments.items():
        for value in np.unique(texts_N).tolist():
            for arm in treatments:
                rows = (texts_N == value) & np.isin(events.variant_U, (control, arm))[events.user_N]
                found = _segment_rows(events, rows, metrics, (control, arm), question)
                if found is None:
                    too_few.append(f"{segment} = {value}, {events.variants[arm]}")
                    continue
                table += [
                    {"segment": segment, "value": value, "treatment": events.variants[arm], **row} for row in found
                ]
    for row, p in zip(table, holm([row["p"] for row in table]), strict=True):
        row["p_holm"] = p
    return table, too_few


def _segment_rows(
    events: Events,
    rows: Bools,
    metrics: dict[str, str],
    arms: tuple[int, int],
    question: Question,
) -> list[dict[str, Any]] | None:
    """Give one row a metric; None where an arm has too few users or a metric no positive ratio."""
    shares = dict(question.shares) or dict.fromkeys(events.variants, 1.0)
    table = []
    for name, column in metrics.items():
        totals = user_totals(events, column, rows)
        users = [int(np.sum(totals.variant_U == arm)) for arm in arms]
        positive = (totals.numerator_U[totals.variant_U == arm].sum() > 0 for arm in arms)
        if min(users) < FEWEST_USERS or not all(positive):
            return None
        control, treatment = _estimates(totals, *arms).best
        lift = lift_of(treatment, control, confidence=question.confidence)
        sample_ratio = sample_ratio_p(users, [shares[events.variants[arm]] for arm in arms])
        table.append({"metric": name, "users": sum(users), "lift": _lift(lift), "p": lift.p, "srm_p": sample_ratio})
    return table


def _lift(lift: Lift) -> dict[str, float]:
    return {"value": lift.value, "low": lift.low, "high": lift.high}


def _ends(ends: tuple[float, float], scale: float = 1.0) -> dict[str, float]:
    return {"low": ends[0] * scale, "high": ends[1] * scale}
