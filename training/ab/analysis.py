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
class Reading:
    """One metric in control and treatment.

    Args: ratios: as measured; plain, adjusted: the lift as measured and with CUPED, None where there is none; removed:
        share of the variance that CUPED takes away, None without it; note: why a lift or CUPED is missing though there
        are data, or None.
    """

    ratios: tuple[Ratio, Ratio]
    plain: Lift | None
    adjusted: Lift | None
    removed: float | None
    note: str | None

    @property
    def best(self) -> Lift | None:
        """The lift with CUPED where there is one."""
        return self.adjusted or self.plain


def analyse(events: Events, question: Question) -> dict[str, Any]:
    """Give the content of ab.json.

    A figure that cannot be had, such as a secondary metric's lift where an arm has none of it, is None.

    Raises: InputError: if the control, the primary metric or the shares do not fit the events, an arm is empty, or the
        primary metric has no lift because a ratio is not clearly above 0.
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
                name: _metric(name, _reading(user_totals(events, column), (control, arm), question), question)
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


def _reading(totals: UserTotals, arms: tuple[int, int], question: Question) -> Reading:
    confidence = question.confidence
    control, treatment = (arm_ratio(totals, arm) for arm in arms)
    plain = lift_of(treatment, control, confidence=confidence)
    if not plain.known:
        found = f"{control.value:.4g} in the control, {treatment.value:.4g} in the treatment"
        note = f"no lift: expected ratios clearly above 0 in both arms, found {found}"
        return Reading((control, treatment), None, None, None, note)
    pair = adjusted_ratios(totals, arms)
    adjusted = None if pair is None else lift_of(pair[1], pair[0], confidence=confidence)
    if adjusted is None or not adjusted.known:
        no_past = totals.pre_numerator_U is None
        note = "no CUPED: the past is empty or alike for all users, or would push a ratio to 0 or below"
        return Reading((control, treatment), plain, None, None, None if no_past else note)
    removed = 1 - adjusted.variance / plain.variance if plain.variance > 0 else None
    return Reading((control, treatment), plain, adjusted, removed, None)


def _metric(name: str, reading: Reading, question: Question) -> dict[str, Any]:
    confidence, scale, best = question.confidence, METRICS[name][1], reading.best
    if best is None and name == question.primary:
        raise InputError(f"{name}: {reading.note}")
    return {
        **{
            arm: {"value": ratio.value * scale, **_ends(ratio.interval(confidence), scale)}
            for arm, ratio in zip(("control", "treatment"), reading.ratios, strict=True)
        },
        "lift": _lift(reading.plain),
        "lift_cuped": _lift(reading.adjusted),
        "variance_removed": reading.removed,
        "p": None if best is None else best.p,
        "detectable_lift": None
        if best is None
        else detectable_lift(best.variance, power=question.power, confidence=confidence),
        "note": reading.note,
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
        _add_holm(family)
    if question.planned_lift is not None:
        last = [r["looks"][-1]["p"] if r["looks"] else 1.0 for r in found.values()]
        for result, p in zip(found.values(), holm(last), strict=True):
            result["p_always_valid_holm"] = p


def _add_holm(family: Sequence[dict[str, Any]]) -> None:
    """Add p_holm to rows with p; where p is None there is no test, and the row does not count in the family."""
    adjusted = holm([float("nan") if row["p"] is None else row["p"] for row in family])
    for row, p in zip(family, adjusted, strict=True):
        row["p_holm"] = None if row["p"] is None else p


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
    _add_holm(table)
    return table, too_few


def _segment_rows(
    events: Events,
    rows: Bools,
    metrics: dict[str, str],
    arms: tuple[int, int],
    question: Question,
) -> list[dict[str, Any]] | None:
    """Give one row a metric; None where an arm has too few users or nothing below the line."""
    shares = dict(question.shares) or dict.fromkeys(events.variants, 1.0)
    table = []
    for name, column in metrics.items():
        totals = user_totals(events, column, rows)
        users = [int(np.sum(totals.variant_U == arm)) for arm in arms]
        below_line = [totals.denominator_U[totals.variant_U == arm].sum() for arm in arms]
        if min(users) < FEWEST_USERS or min(below_line) <= 0:
            return None
        reading = _reading(totals, arms, question)
        table.append(
            {
                "metric": name,
                "users": sum(users),
                "lift": _lift(reading.best),
                "cuped": reading.adjusted is not None,
                "p": None if reading.best is None else reading.best.p,
                "srm_p": sample_ratio_p(users, [shares[events.variants[arm]] for arm in arms]),
                "note": reading.note,
            }
        )
    return table


def _lift(lift: Lift | None) -> dict[str, float] | None:
    return None if lift is None else {"value": lift.value, "low": lift.low, "high": lift.high}


def _ends(ends: tuple[float, float], scale: float = 1.0) -> dict[str, float]:
    return {"low": ends[0] * scale, "high": ends[1] * scale}
