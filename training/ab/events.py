"""Events of an experiment: a JSONL or Parquet file of user × day or request rows → arrays, and totals of each user.

Suffixes: N rows of the experiment, U users.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError, RowError
from relevance.pairs import BadRows, plain_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Strings = NDArray[np.str_]

NUMERATORS = ("revenue", "clicks", "relevant_impressions")
LATENCY = "latency_ms"
TIMES = ("day", "timestamp")
PRE = "pre_"
NO_SEGMENT = "(none)"
_NEGATIVE_ALLOWED = ("revenue", "pre_revenue")
"""Refunds make revenue negative; nothing else may be."""


@dataclass(frozen=True, slots=True)
class Events:
    """The rows of an experiment, and what is known of its users.

    Args: user_N, day_N: indices into users and `days`; values: column → N; segments: name → N; variant_U: index into
        `variants`; pre: column (without `pre_`) → U, totals before the experiment; days: in order, one empty text where
        rows have no time; denominator: the column that every ratio divides by; crossed: users of several variants, left
        out; unexposed: users with rows before the experiment only, left out.
    """

    user_N: Ints
    day_N: Ints
    values: Mapping[str, Floats]
    segments: Mapping[str, Strings]
    variant_U: Ints
    variants: tuple[str, ...]
    pre: Mapping[str, Floats]
    days: tuple[str, ...]
    denominator: str = "impressions"
    crossed: int = 0
    unexposed: int = 0


@dataclass(frozen=True, slots=True)
class UserTotals:
    """One ratio metric's totals of U users.

    Args: variant_U: index of the variant; numerator_U, denominator_U: within the experiment; pre_numerator_U,
        pre_denominator_U: before it, None where the file does not tell.
    """

    variant_U: Ints
    numerator_U: Floats
    denominator_U: Floats
    pre_numerator_U: Floats | None = None
    pre_denominator_U: Floats | None = None


def user_totals(events: Events, numerator: str, rows: Bools | None = None) -> UserTotals:
    """Add up the rows of each user who has any among those chosen.

    Args: numerator: a column of `events.values`; rows: mask over N, None for all.
    """
    chosen = slice(None) if rows is None else np.flatnonzero(rows)
    user, n_users = events.user_N[chosen], len(events.variant_U)
    seen = np.flatnonzero(np.bincount(user, minlength=n_users))
    totals = {
        name: np.bincount(user, weights=events.values[name][chosen], minlength=n_users)[seen].astype(np.float64)
        for name in {numerator, events.denominator}
    }
    known = numerator in events.pre and events.denominator in events.pre
    return UserTotals(
        variant_U=events.variant_U[seen],
        numerator_U=totals[numerator],
        denominator_U=totals[events.denominator],
        pre_numerator_U=events.pre[numerator][seen] if known else None,
        pre_denominator_U=events.pre[events.denominator][seen] if known else None,
    )


def read_events(
    path: Path,
    *,
    denominator: str = "impressions",
    segments: Sequence[str] = (),
    bad_rows: BadRows | None = None,
) -> Events:
    """Read an events file; docs/ab.md describes its columns.

    Args: denominator: column that ratios divide by; segments: columns of the segment table.
    Raises: InputError: if the file is missing, of another kind, lacks a column or holds no row of the experiment;
        RowError: as `bad_rows` says.
    """
    bad_rows = bad_rows or BadRows()
    collected: _Collector | None = None
    required = ("user_id", "variant", denominator, *segments)
    for number, row in plain_rows(path, required, bad_rows):
        if collected is None:
            first = row if row.get("period") != "pre" else _first_of_experiment(path, required)
            if missing := [name for name in required if name not in first]:
                raise InputError(
                    f"{path}: expected the columns {list(required)}, found {sorted(first)}; missing: {missing}"
                )
            columns, time_column = _columns(path, first, denominator), next((c for c in TIMES if c in first), None)
            collected = _Collector(path.name, denominator, tuple(segments), columns, time_column)
        try:
            collected.add(row, number)
        except RowError as error:
            bad_rows.add(error)
    if collected is None or not collected.user:
        raise InputError(f"{path}: expected rows of the experiment, found none")
    return collected.events()


def _first_of_experiment(path: Path, required: tuple[str, ...]) -> dict[str, Any]:
    """Give the first row that is not of the time before, whose columns are the file's.

    Raises: InputError: if there is none.
    """
    rows = plain_rows(path, required, BadRows("skip"))
    first = next((row for _, row in rows if row.get("period") != "pre"), None)
    if first is None:
        raise InputError(f"{path}: expected rows of the experiment, found none but of period 'pre'")
    return first


@dataclass(slots=True)
class _Collector:
    """Rows read so far, column by column."""

    where: str
    denominator: str
    segment_names: tuple[str, ...]
    columns: tuple[str, ...]
    time_column: str | None
    user: array[int] = field(default_factory=lambda: array("q"))
    day: list[str] = field(default_factory=list)
    values: dict[str, array[float]] = field(default_factory=dict)
    segments: dict[str, list[str]] = field(default_factory=dict)
    index: dict[str, int] = field(default_factory=dict)
    variant: list[str | None] = field(default_factory=list)
    crossed: set[int] = field(default_factory=set)
    pre: dict[str, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = {name: array("d") for name in self.columns if not name.startswith(PRE)}
        self.segments = {name: [] for name in self.segment_names}

    def add(self, row: Mapping[str, Any], number: int) -> None:
        """Take one row.

        Raises: RowError: if a value is missing or impossible, or the user was in another variant before.
        """
        user_id = _text(row, number, "user_id", self.where)
        before = self._before(row, number)
        figures = {name: _number(row, number, name, self.where) for name in self._wanted(before)}
        variant = None if before else _text(row, number, "variant", self.where)
        day = "" if before or self.time_column is None else _day(row, number, self.time_column, self.where)
        user = self.index.setdefault(user_id, len(self.index))
        if user == len(self.variant):
            self.variant.append(None)
        if before:
            for name, value in figures.items():
                known = self.pre.setdefault(name, {})
                known[user] = known.get(user, 0.0) + value
            return
        self._check_user(user, variant, figures, number)
        self.variant[user] = variant
        self.user.append(user)
        self.day.append(day)
        for name, values in self.values.items():
            values.append(figures[name])
        for name, texts in self.segments.items():
            texts.append(NO_SEGMENT if row.get(name) is None else str(row[name]))

    def _before(self, row: Mapping[str, Any], number: int) -> bool:
        period = row.get("period", "post")
        if period not in ("pre", "post"):
            raise RowError(self.where, number, "period", f"expected 'pre' or 'post', found {period!r:.40}")
        if period == "pre" and any(name.startswith(PRE) for name in self.columns):
            raise RowError(
                self.where, number, "period", "expected either pre_… columns or rows of period 'pre', not both"
            )
        return bool(period == "pre")

    def _wanted(self, before: bool) -> tuple[str, ...]:
        return (self.denominator, *(n for n in NUMERATORS if n in self.columns)) if before else self.columns

    def _check_user(self, user: int, variant: str | None, figures: Mapping[str, float], number: int) -> None:
        first = self.variant[user]
        if first is not None and first != variant:
            self.crossed.add(user)
            raise RowError(
                self.where,
                number,
                "variant",
                f"expected each user in one variant, found {variant!r:.40} after {first!r:.40}",
            )
        for name in self.columns:
            if name.startswith(PRE):
                value = self.pre.setdefault(name.removeprefix(PRE), {}).setdefault(user, figures[name])
                if value != figures[name]:
                    problem = f"expected one value a user, found {figures[name]:g} after {value:g}"
                    raise RowError(self.where, number, name, problem)

    def events(self) -> Events:
        """Turn the lists into arrays; leave out users of several variants and users never exposed.

        Raises: InputError: if nobody is left.
        """
        unexposed = sum(v is None for v in self.variant)
        kept_users = [u for u, v in enumerate(self.variant) if v is not None and u not in self.crossed]
        if not kept_users:
            raise InputError(f"{self.where}: expected users of one variant each, found none")
        place = np.full(len(self.variant), -1, dtype=np.int64)
        place[kept_users] = np.arange(len(kept_users))
        user_N = place[np.asarray(self.user, dtype=np.int64)]
        rows = user_N >= 0
        variants, variant_U = np.unique([str(self.variant[u]) for u in kept_users], return_inverse=True)
        days, day_N = np.unique(np.asarray(self.day, dtype=np.str_)[rows], return_inverse=True)
        return Events(
            user_N=user_N[rows],
            day_N=day_N.astype(np.int64),
            values={name: np.asarray(values, dtype=np.float64)[rows] for name, values in self.values.items()},
            segments={name: np.asarray(texts, dtype=np.str_)[rows] for name, texts in self.segments.items()},
            variant_U=variant_U.astype(np.int64),
            variants=tuple(variants.tolist()),
            pre={name: np.array([of.get(u, 0.0) for u in kept_users]) for name, of in self.pre.items()},
            days=tuple(days.tolist()),
            denominator=self.denominator,
            crossed=len(self.crossed),
            unexposed=unexposed,
        )


def _columns(path: Path, row: Mapping[str, Any], denominator: str) -> tuple[str, ...]:
    """Name the numeric columns, by the experiment's first row; every other one must have them too."""
    numerators = tuple(name for name in NUMERATORS if name in row and name != denominator)
    if not numerators:
        raise InputError(f"{path}: expected at least one of the columns {', '.join(NUMERATORS)}, found {sorted(row)}")
    pre = tuple(PRE + name for name in (denominator, *numerators) if PRE + name in row)
    if pre and PRE + denominator not in pre:
        raise InputError(f"{path}: expected the column {PRE + denominator!r} beside {', '.join(pre)}, found none")
    return (denominator, *numerators, *((LATENCY,) if LATENCY in row else ()), *pre)


def _text(row: Mapping[str, Any], number: int, column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError(where, number, column, f"expected a text or an integer, found {value!r:.60}")
    return str(value)


def _number(row: Mapping[str, Any], number: int, column: str, where: str) -> float:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise RowError(where, number, column, f"expected a finite number, found {value!r:.60}")
    if value < 0 and column not in _NEGATIVE_ALLOWED:
        raise RowError(where, number, column, f"expected a number of at least 0, found {value:g}")
    return float(value)


def _day(row: Mapping[str, Any], number: int, column: str, where: str) -> str:
    """Give the day of a row (UTC) from ISO text, a date or time, or, of a timestamp, seconds since 1970."""
    value = row.get(column)
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and column == "timestamp" and not isinstance(value, bool):
            value = datetime.fromtimestamp(value, tz=UTC)
        if isinstance(value, datetime):
            return (value.astimezone(UTC) if value.tzinfo else value).date().isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise RowError(where, number, column, f"expected a day or a time in ISO 8601, found {value!r:.60}") from error
    if not isinstance(value, date):
        raise RowError(where, number, column, f"expected a day or a time in ISO 8601, found {value!r:.60}")
    return value.isoformat()
