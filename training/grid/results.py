"""A grid's folder → results.json: figures of every system, differences with their tests, what did not finish.

A run that diverged or failed is named and never averaged in; a system that was not run keeps its row.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from relevance.errors import RunError
from relevance.labels import LabelScheme
from training.grid import statistics
from training.grid.comparisons import BASE, PRIMARY, Judged, compare, differences, families, figure
from training.grid.fits import Grid, System, read_grid
from training.grid.slices import AUC_DRAWS, Slice, commonest_class, sample, slices_of
from training.grid.statistics import Sample
from training.grid.sweeps import response_curves
from training.recipe import RECIPES, Recipe
from training.runs import Run, commit

SMOKE = "smoke"
SYNTHETIC = "Synthetic privileged-information benchmark; says nothing about ESCI accuracy."
WORDING = {
    "marketplace": SYNTHETIC,
    "esci-mini": "A small sample of the Shopping Queries Dataset with splits of its own: not comparable with published "
    "ESCI figures. Few complete judgement lists, few pairs outside of the US, and what the rationales know more than "
    "the students is written by a programme from item fields and from an LLM's readings of some queries.",
}
"""What a reader must know first, by data source."""
NO_RANKING = (
    "A smoke recipe checks that every system trains and is reported: its data and its training are too small to tell "
    "systems apart, so rows stand in the recipe's order and no difference is computed."
)


def grid_results(run: Run) -> dict[str, Any]:
    """Give everything the grid's report says, as plain data; nan, which JSON cannot hold, is None.

    Raises: RunError: if no run has finished, the runs scored different pairs, or the test pairs cannot be judged;
        InputError: if a predictions file is damaged.
    """
    grid, recipe = read_grid(run), run.recipe
    if grid.pairs is None:
        raise RunError(f"{run.path}: expected at least one finished run of a system, found none; run `relevance grid`")
    slices, scheme = slices_of(grid.pairs), recipe.label_scheme
    if not slices or slices[0].kind != "primary":
        raise RunError(f"{run.path}: expected test pairs of at least two queries outside the Exact-only sources")
    primary = slices[0]
    samples = _samples(grid, primary, recipe, areas=True)
    judged = Judged(grid, primary, samples, recipe.seed)
    ranking = SMOKE not in recipe.name
    results = {
        "recipe": recipe.name,
        "commit": commit(),
        "grid": {key: grid.record.get(key) for key in ("config_hash", "commit", "machine", "allowances")},
        "tuning": _trials(grid, recipe),
        "checks": _flat(grid.record["checks"]) if grid.record.get("checks") else None,
        "wording": WORDING.get(recipe.data.source),
        "ranking": ranking,
        "no_ranking_because": None if ranking else NO_RANKING,
        "draws": {"all": recipe.grid.draws, "areas": min(AUC_DRAWS, recipe.grid.draws)},
        "classes": list(scheme.classes),
        "titles": list(scheme.titles),
        "seeds": list(recipe.grid.seeds),
        "primary": _described(primary, scheme),
        "ours": recipe.grid.ours,
        "systems": [
            _system_row(s, samples.get(s.name), recipe.seed) | {"tuned": (grid.record.get("tuning") or {}).get(s.name)}
            for s in grid.systems
        ],
        "differences": differences(judged, recipe) if ranking else {},
        "gap_closed": _gaps(grid, samples, recipe.seed) if ranking else {},
        "sweeps": response_curves(judged, recipe) if ranking else [],
        "slices": [_slice_rows(grid, part, recipe, ranking=ranking) for part in slices[1:]],
        "runs": _runs(grid, samples),
    }
    plain: dict[str, Any] = _plain(results)
    return plain


def _gaps(grid: Grid, samples: dict[str, Sample], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Give the share of each ceiling's lead over plain BERT that each trained system has; {} without plain BERT."""
    gaps: dict[str, list[dict[str, Any]]] = {}
    for ceiling in (s for s in grid.systems if s.group == "ceiling" and s.name in samples and BASE in samples):
        rows = []
        for system in grid.systems:
            if system.name not in samples or system.name == BASE or system.group in {"ceiling", "baseline"}:
                continue
            own = samples[system.name]
            share = statistics.gap_closed(own, samples[BASE], samples[ceiling.name], PRIMARY, seed=seed)
            rows.append({"name": system.name, "title": system.title, **({} if share is None else figure(share))})
        gaps[ceiling.title] = rows
    return gaps


def _samples(grid: Grid, part: Slice, recipe: Recipe, *, areas: bool) -> dict[str, Sample]:
    count_DQ = statistics.draw_queries(part.n_queries, recipe.grid.draws, recipe.seed)
    scheme = recipe.label_scheme
    return {s.name: sample(s, part, scheme, count_DQ, areas=areas) for s in grid.systems if s.seeds}


def _figures(own: Sample, seed: int) -> dict[str, dict[str, float]]:
    figures = {}
    for name, value_S in own.value.items():
        if name in own.drawn:
            figures[name] = figure(statistics.estimate(own, name, seed))
        else:
            sd = float(value_S.std(ddof=1)) if len(value_S) > 1 else math.nan
            figures[name] = {"value": float(value_S.mean()), "low": math.nan, "high": math.nan, "sd": sd}
    return figures


def _system_row(system: System, own: Sample | None, seed: int) -> dict[str, Any]:
    return {
        "name": system.name,
        "title": system.title,
        "group": system.group,
        "paper": system.paper,
        "untrained": system.constant,
        "finished": len(system.seeds),
        "asked": len(system.runs),
        "figures": None if own is None else _figures(own, seed),
    }


def _described(part: Slice, scheme: LabelScheme) -> dict[str, Any]:
    return {
        "name": part.name,
        "kind": part.kind,
        "n_pairs": len(part.rows),
        "n_queries": part.n_queries,
        "n_ranked_queries": sum(own is not None for own in part.ranked_Q),
        "commonest": commonest_class(part.label_N, scheme),
    }


def _slice_rows(grid: Grid, part: Slice, recipe: Recipe, *, ranking: bool) -> dict[str, Any]:
    """Give every system's figures on a slice and ours against the rivals there, a family of its own."""
    samples = _samples(grid, part, recipe, areas=False)
    rivals = families(grid, recipe)["rivals"] if ranking else []
    return {
        **_described(part, recipe.label_scheme),
        "systems": {name: _figures(own, recipe.seed) for name, own in samples.items()},
        "differences": compare(rivals, Judged(grid, part, samples, recipe.seed)),
    }


def _runs(grid: Grid, samples: dict[str, Sample]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for system in grid.systems:
        for fit in system.runs:
            own = samples.get(system.name)
            done = own is not None and fit.seed in own.seeds
            value = float(own.value[PRIMARY][own.seeds.index(fit.seed)]) if own is not None and done else None
            rows.append({**asdict(fit), "title": system.title, PRIMARY: value})
    return rows


def _trials(grid: Grid, recipe: Recipe) -> list[dict[str, Any]] | None:
    """Give every tuning trial of the recipe's ledger, None for a recipe that has none."""
    if recipe.grid.tuning is None:
        return None
    path = RECIPES / recipe.grid.tuning
    if not path.is_file():
        raise RunError(f"grid.tuning: expected a tuning ledger, found none at {path}")
    chosen, trials = grid.record.get("tuning") or {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            trial = {key: row[key] for key in ("system", "trial", "overrides", "dev")}
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path}, line {number}: expected an object with system, trial, overrides and dev, found {line:.60}"
            ) from error
        if trial["system"] in recipe.grid.systems:
            trials.append({**trial, "chosen": chosen.get(trial["system"]) == trial["overrides"]})
    return trials


def _flat(value: Any, path: str = "") -> list[dict[str, Any]]:  # noqa: ANN401 - any JSON value
    """Give nested figures as rows of a dotted name and a value."""
    if isinstance(value, dict):
        return [row for key, v in value.items() for row in _flat(v, f"{path}.{key}" if path else str(key))]
    return [{"name": path, "value": value}]


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
