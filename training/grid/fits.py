"""What a grid left on disk: which systems were asked for, how each run ended, and the logits of those that finished.

OUT/fits/SYSTEM/seed_S/ holds status.json and student/predictions.{dev,test}.parquet. Suffixes: N pairs, S seeds,
K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from relevance.calibration import softmax
from relevance.errors import RunError
from relevance.labels import LabelScheme
from training.calibrate import balanced_label_weights
from training.grid.status import STATUS
from training.grid.systems import SYSTEMS
from training.predictions import Predictions, read_predictions
from training.runs import Run

Floats = NDArray[np.float64]
State = Literal["done", "diverged", "failed", "not run"]
FITS = "fits"
GRID = "grid.json"
_SAME = ("pair_id", "query_id", "item_id", "locale", "source", "label", "exact_only")
_UNTRAINED = ("baseline", "annotated")
"""Kinds of systems that one run, seed_0, stands for all seeds of."""


@dataclass(frozen=True, slots=True)
class FitRun:
    """How one run of one system ended; None where its status does not say.

    Args: guidance_explained: share of the guidance targets' mean square that the latent explained at the end;
        guidance_reachable: the largest share that it could have explained (`training.student.guidance.reachable`);
        rationale_tokens_read: share of the rationales' tokens that a term which reads their text had room for.
    """

    system: str
    seed: int
    state: State
    error: str | None = None
    seconds: float | None = None
    pairs_per_second: float | None = None
    parameters: int | None = None
    guidance_explained: float | None = None
    guidance_reachable: float | None = None
    config_hash: str | None = None
    rationale_tokens_read: float | None = None


@dataclass(frozen=True, slots=True)
class System:
    """One system of the grid and its finished runs.

    Args: constant: untrained, so that its one run stands for every seed; runs: all that were asked for; seeds: of the
        finished ones; logits_SNK: of the test pairs; weight_SK: label weights chosen on dev for macro-F1.
    """

    name: str
    title: str
    group: str
    paper: str
    constant: bool
    runs: tuple[FitRun, ...]
    seeds: tuple[int, ...]
    logits_SNK: Floats
    weight_SK: Floats


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid's record (grid.json), its test pairs (None when no run has finished) and its systems, in recipe order."""

    record: dict[str, Any]
    pairs: Predictions | None
    systems: tuple[System, ...]

    def system(self, name: str) -> System | None:
        """Give a system with at least one finished run by its name."""
        return next((s for s in self.systems if s.name == name and s.seeds), None)


def read_grid(run: Run) -> Grid:
    """Read everything a grid left in the run's folder.

    Raises: RunError: if two runs scored other pairs or in another order, or grid.json is not a JSON object;
        InputError: if a predictions file is damaged.
    """
    record = _record(run.path / GRID)
    told = {entry["name"]: entry for entry in record.get("systems", ())}
    pairs: Predictions | None = None
    systems = []
    points = tuple(f"sweep_{sweep}_" for sweep in run.recipe.grid.sweeps)
    asked = (*run.recipe.grid.systems, *(name for name in SYSTEMS if name.startswith(points)))
    for name in dict.fromkeys((*asked, *told)):
        system, seen = _read_system(run, name, told.get(name, {}), pairs, record.get("config_hashes") or {})
        pairs = pairs if pairs is not None else seen
        systems.append(system)
    return Grid(record, pairs, tuple(systems))


def grid_files(run: Run) -> Iterator[Path]:
    """Give every file that `read_grid` reads, in a fixed order."""
    files = [run.path / GRID]
    for pattern in (STATUS, "student/predictions.dev.parquet", "student/predictions.test.parquet"):
        files += sorted((run.path / FITS).glob(f"*/seed_*/{pattern}"))
    return (path for path in files if path.is_file())


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: expected JSON: {error}") from error
    if not isinstance(record, dict) or not _is_record(record):
        raise RunError(f"{path}: expected an object whose systems have names; run `relevance grid` again")
    return record


def _is_record(record: dict[str, Any]) -> bool:
    systems = record.get("systems", [])
    return (
        isinstance(systems, list)
        and all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in systems)
        and all(isinstance(record.get(key) or {}, dict) for key in ("config_hashes", "tuning"))
    )


def _read_system(
    run: Run, name: str, told: dict[str, Any], pairs: Predictions | None, hashes: dict[str, str]
) -> tuple[System, Predictions | None]:
    folder, grid, scheme = run.path / FITS / name, run.recipe.grid, run.recipe.label_scheme
    known = SYSTEMS.get(name)
    constant = known is not None and known.kind in _UNTRAINED
    runs, seeds, logits, weights = [], [], [], []
    for seed in (0,) if constant else grid.seeds:
        fit = _status(folder / f"seed_{seed}", name, seed)
        if fit.config_hash != hashes.get(f"{name}/seed_{seed}", fit.config_hash):
            fit = FitRun(name, seed, "not run", "what lies there was trained with another configuration")
        if fit.state == "done":
            fit, test = _finished(folder / f"seed_{seed}", fit)
            if test is not None:
                pairs = pairs if pairs is not None else test
                _check_same(pairs, test, folder / f"seed_{seed}")
                seeds.append(seed)
                logits.append(test.logits_NK)
                weights.append(_dev_weights(folder / f"seed_{seed}", scheme))
        runs.append(fit)
    shape = (len(seeds), len(pairs) if pairs is not None else 0, scheme.n_classes)
    return System(
        name=name,
        title=str(told.get("title") or (known.title if known else name)),
        group=str(told.get("group") or (known.group if known else "other")),
        paper=str(told.get("paper") or (known.paper if known else "")),
        constant=constant,
        runs=tuple(runs),
        seeds=tuple(seeds),
        logits_SNK=np.array(logits, dtype=np.float64).reshape(shape),
        weight_SK=np.array(weights, dtype=np.float64).reshape(len(seeds), scheme.n_classes),
    ), pairs


def _status(folder: Path, system: str, seed: int) -> FitRun:
    """Read status.json; a run that was killed has none and counts as not run."""
    path = folder / STATUS
    if not path.is_file():
        return FitRun(system, seed, "not run")
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        state: State = {"done": "done", "diverged": "diverged"}.get(status["state"], "failed")  # type: ignore[assignment]
    except (ValueError, KeyError, TypeError):
        return FitRun(system, seed, "failed", f"{STATUS} is not a JSON object with a state")
    fields: tuple[str, ...] = ("error", "seconds", "pairs_per_second", "parameters", "guidance_explained")
    fields += ("guidance_reachable", "config_hash", "rationale_tokens_read")
    return FitRun(system, seed, state, **{name: status.get(name) for name in fields})


def _finished(folder: Path, fit: FitRun) -> tuple[FitRun, Predictions | None]:
    path = folder / "student" / "predictions.test.parquet"
    if not path.is_file():
        return replace(fit, state="failed", error=f"no {path.name}, though the status says done"), None
    test = read_predictions(path)
    if not np.isfinite(test.logits_NK).all():
        return replace(fit, state="diverged", error="logits that are not finite"), None
    return fit, test


def _check_same(pairs: Predictions, test: Predictions, folder: Path) -> None:
    for name in _SAME:
        if not np.array_equal(getattr(pairs, name), getattr(test, name)):
            raise RunError(
                f"{folder}: expected predictions of the same {len(pairs)} test pairs in the same order as the grid's "
                f"first finished run, found {len(test)} with another {name}; run `relevance grid` again"
            )


def _dev_weights(folder: Path, scheme: LabelScheme) -> Floats:
    """Choose label weights on dev; nan without dev predictions."""
    path = folder / "student" / "predictions.dev.parquet"
    if not path.is_file():
        return np.full(scheme.n_classes, np.nan)
    dev = read_predictions(path)
    dev = dev.rows(~dev.exact_only)
    weights = balanced_label_weights(dev, softmax(dev.logits_NK), scheme)
    return np.array([weights[code] for code in scheme.classes])
