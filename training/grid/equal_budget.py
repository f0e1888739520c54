"""Equal budget: no system of a grid gets more training, another input or more tuning trials than the others.

A difference between two systems says something about the methods only if all else is the same (Dodge et al., Show Your
Work, EMNLP 2019). A system whose very definition needs another input or schedule (a baseline that reads the privileged
fields, a paper's own preset, a compute-matched control) has an allowance with a reason, which the report shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from relevance.errors import RecipeError
from training.json_rows import read_json_rows

METHOD_KEYS = (
    "student.extractor",
    "student.guidance",
    "student.guidance_weight",
    "student.rationale_terms",
    "student.ced_kd",
    "student.mkd",
    "student.crsd",
    "student.soft_labels",
    "student.fit.soft_label_weight",
    "student.fit.learning_rate",
    "student.fit.head_learning_rate",
    "student.fit.rate_factor",
)
"""Recipe keys and sections that make a method, or that are tuned; all others are budget, input or judgement."""

Overrides = Mapping[str, object]
"""Dotted recipe key → value; a value may be a section (a mapping)."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """A difference in budget or input that the report must show: what the system sets, and why it may."""

    system: str
    key: str
    value: object
    reason: str


class _Trial(BaseModel):
    """One row of a tuning ledger.

    Args: dev: None for a trial that diverged, which counts as spent; common: hash of what all trials share.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    system: str = Field(min_length=1)
    trial: int = Field(ge=0)
    overrides: dict[str, object]
    dev: float | None = Field(allow_inf_nan=False)
    common: str = Field(min_length=1)


def check_budget(
    overrides: Mapping[str, Overrides], allowances: Mapping[str, Mapping[str, str]]
) -> tuple[Allowance, ...]:
    """Refuse systems that change budget or input for themselves alone.

    Args: overrides: system → what it changes in the recipe; a key outside `METHOD_KEYS` that all systems set to one
        value is the recipe's business and passes; allowances: system → {key or section → reason}.
    Returns: the differences that an allowance covers, for the report.
    Raises: RecipeError: naming system, key and value of each other difference; or if an allowance has no reason, or
        covers nothing that its system sets.
    """
    flat = {system: dict(_leaves(changes)) for system, changes in overrides.items()}
    allowed = {system: allowances.get(system, {}) for system in flat}
    refused: list[str] = []
    shown: list[Allowance] = []
    for system, changes in flat.items():
        for key, value in changes.items():
            if not _is_budget(key) or _shared(key, value, flat):
                continue
            reason = next((text for prefix, text in allowed[system].items() if _covers(prefix, key)), None)
            if reason is None:
                refused.append(f"{system}: {key} = {value!r}")
            else:
                shown.append(Allowance(system, key, value, reason))
    if refused:
        raise RecipeError(
            "grid.systems: expected one budget and one input for all systems, found " + "; ".join(sorted(refused))
        )
    _check_allowances(allowed, flat)
    return tuple(shown)


def choose_tuned(
    ledger: Path, searches: Mapping[str, Sequence[Overrides]], common: str
) -> dict[str, dict[str, object]]:
    """Give the overrides of each system's best trial on dev, the earliest one of equals.

    Args: ledger: JSON Lines with `system`, `trial`, `overrides`, `dev` (null: diverged) and `common`; rows of systems
        not asked for are left alone; searches: system → the trials it must have, no fewer, no more and no others;
        common: hash of the recipe that the grid's trials share, which must be the ledger's.
    Raises: RecipeError: if the file is missing, trials are missing, repeated, foreign or all diverged, or were run
        under another common recipe; RowError: if a row is malformed, naming line and field.
    """
    rows: dict[str, list[_Trial]] = defaultdict(list)
    for number, row in _read(ledger):
        search = searches.get(row.system)
        if search is None:
            continue
        if row.trial >= len(search) or dict(search[row.trial]) != row.overrides:
            expected = dict(search[row.trial]) if row.trial < len(search) else f"{len(search)} trials"
            raise RecipeError(
                f"{ledger.name}, row {number}: expected of {row.system}, trial {row.trial}, {expected}, found "
                f"{row.overrides}"
            )
        if row.common != common:
            raise RecipeError(
                f"{ledger.name}, row {number}: expected trials of this recipe ({common[:12]}), found those of another "
                f"({row.common[:12]}); run `relevance grid --tune` again"
            )
        rows[row.system].append(row)
    counts = {system: len(rows[system]) for system in searches}
    if any(counts[system] != len(search) for system, search in searches.items()):
        wanted = {system: len(search) for system, search in searches.items()}
        raise RecipeError(f"{ledger.name}: expected tuning trials {wanted}, found {counts}")
    return {system: _best(ledger, system, rows[system]) for system in searches}


def _best(ledger: Path, system: str, rows: Sequence[_Trial]) -> dict[str, object]:
    numbers = sorted(row.trial for row in rows)
    if len(set(numbers)) < len(numbers):
        raise RecipeError(f"{ledger.name}: expected each trial of {system} once, found trials {numbers}")
    finished = [(row.dev, -row.trial, row) for row in rows if row.dev is not None]
    if not finished:
        raise RecipeError(
            f"{ledger.name}: expected a trial of {system} that did not diverge, found none of {len(rows)}"
        )
    return dict(max(finished, key=lambda entry: entry[:2])[2].overrides)


def _read(ledger: Path) -> Iterator[tuple[int, _Trial]]:
    if not ledger.is_file():
        raise RecipeError(f"grid.tuning: expected a tuning ledger, found none at {ledger}")
    yield from enumerate(read_json_rows(ledger, _Trial, "tuning trials"), start=1)


def _check_allowances(allowed: Mapping[str, Mapping[str, str]], flat: Mapping[str, Overrides]) -> None:
    for system, reasons in allowed.items():
        for prefix, reason in reasons.items():
            if not reason.strip():
                raise RecipeError(f"allowance of {system} for {prefix}: expected a reason, found none")
            if not any(_covers(prefix, key) for key in flat[system]):
                raise RecipeError(f"allowance of {system} for {prefix}: expected a change that it covers, found none")


def _leaves(changes: Overrides, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_budget(key: str) -> bool:
    return not any(_covers(method, key) for method in METHOD_KEYS)


def _covers(prefix: str, key: str) -> bool:
    return key == prefix or key.startswith(prefix + ".")


def _shared(key: str, value: object, flat: Mapping[str, Mapping[str, object]]) -> bool:
    return len(flat) > 1 and all(key in changes and changes[key] == value for changes in flat.values())
