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
from training.grid.fits import Grid, System, read_grid
from training.grid.slices import AUC_DRAWS, Slice, commonest_class, sample, slices_of
from training.grid.statistics import Estimate, PairedAccuracy, Sample
from training.multiplicity import holm
from training.recipe import RECIPES, Recipe
from training.runs import Run, commit

PRIMARY = "macro_f1"
COMPARED = (PRIMARY, "accuracy", "ndcg_10", "auc_exact", "auc_irrelevant")
BASE = "bert"
PRESET = (
    ("lrkd_gat_paper", "bert_paper"),
    ("lrkd_no_guidance_paper", "bert_paper"),
    ("lrkd_gat_paper", "lrkd_no_guidance_paper"),
    ("bert", "bert_paper"),
)
"""What the paper's own learning rates make of the same comparison."""
LEVEL = 0.05
SMOKE = "smoke"
SYNTHETIC = "Synthetic privileged-information benchmark; says nothing about ESCI accuracy."
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
    ranking = SMOKE not in recipe.name
    results = {
        "recipe": recipe.name,
        "commit": commit(),
        "grid": {key: grid.record.get(key) for key in ("config_hash", "commit", "machine", "allowances")},
        "tuning": _trials(grid, recipe),
        "checks": _flat(grid.record["checks"]) if grid.record.get("checks") else None,
        "wording": SYNTHETIC if recipe.data.source == "marketplace" else None,
        "ranking": ranking,
        "no_ranking_because": None if ranking else NO_RANKING,
        "draws": {"all": recipe.grid.draws, "areas": min(AUC_DRAWS, recipe.grid.draws)},
        "classes": list(scheme.classes),
        "titles": list(scheme.titles),
        "seeds": list(recipe.grid.seeds),
        "primary": _described(primary, scheme),
        "ours": recipe.grid.ours,
        "systems": [_system_row(s, samples.get(s.name), recipe.seed) for s in grid.systems],
        "differences": differences(grid, samples, primary, recipe) if ranking else {},
        "gap_closed": _gaps(grid, samples, recipe.seed) if ranking else {},
        "slices": [_slice_rows(grid, part, recipe) for part in slices[1:]],
        "runs": _runs(grid, samples),
    }
    plain: dict[str, Any] = _plain(results)
    return plain


def differences(grid: Grid, samples: dict[str, Sample], part: Slice, recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """Give the differences of each family of comparisons.

    Returns: by family its rows; Holm's correction is over the finished comparisons of one family, on macro-F1.
    """
    return {
        family: _family(pairs, grid, samples, part, recipe) for family, pairs in families(grid, recipe).items() if pairs
    }


def families(grid: Grid, recipe: Recipe) -> dict[str, list[tuple[str, str]]]:
    """Give the families of comparisons: (left, right) of each difference left - right, whatever came out."""
    ours, rivals = recipe.grid.ours, recipe.grid.rivals
    groups = {s.name: s.group for s in grid.systems}
    further = [n for n, group in groups.items() if group in {"ours", "rival", "ensemble"} and n not in {ours, *rivals}]
    of_bert = [n for n, group in groups.items() if (group == "rival" or n in rivals) and n != BASE]
    return {
        "rivals": [(ours, name) for name in rivals],
        "controls": [(ours, n) for n, group in groups.items() if group == "control" and not n.endswith("_paper")],
        "ablations": [(ours, n) for n, group in groups.items() if group == "ablation"],
        "rivals_and_bert": [(name, BASE) for name in of_bert],
        "others": [(ours, name) for name in further],
        "preset": [(left, right) for left, right in PRESET if left in groups and right in groups],
    }


def verdict(difference: Estimate, p_holm: float) -> str:
    """Say in plain words which side is ahead, or how large a difference would have had to be."""
    if p_holm < LEVEL:
        return "ahead" if difference.value > 0 else "behind"
    return f"undecided (MDD {difference.detectable:.3f})"


def _family(
    pairs: list[tuple[str, str]], grid: Grid, samples: dict[str, Sample], part: Slice, recipe: Recipe
) -> list[dict[str, Any]]:
    titles = {s.name: s.title for s in grid.systems}
    found: dict[tuple[str, str], Estimate] = {}
    for ours, theirs in pairs:
        if ours in samples and theirs in samples:
            main = statistics.difference(samples[ours], samples[theirs], PRIMARY, recipe.seed)
            if main is not None:
                found[ours, theirs] = main
    adjusted = dict(zip(found, holm([e.p for e in found.values()]), strict=True))
    rows: list[dict[str, Any]] = []
    for ours, theirs in pairs:
        row = {"ours": ours, "theirs": theirs}
        row |= {f"{side}_title": titles.get(name, name) for side, name in (("ours", ours), ("theirs", theirs))}
        if (ours, theirs) not in found:
            rows.append({**row, "verdict": "not run", "figures": {}, "p_holm": None, "paired": None})
            continue
        each = {n: statistics.difference(samples[ours], samples[theirs], n, recipe.seed) for n in COMPARED}
        p_holm = adjusted[ours, theirs]
        rows.append(
            {
                **row,
                "verdict": verdict(found[ours, theirs], p_holm),
                "figures": {n: _figure(e) for n, e in each.items() if e is not None},
                "p_holm": p_holm,
                "paired": asdict(_median_pair(grid, samples, part, ours, theirs)),
            }
        )
    return rows


def _median_pair(grid: Grid, samples: dict[str, Sample], part: Slice, ours: str, theirs: str) -> PairedAccuracy:
    """Compare the hits of the seed whose difference in accuracy is the median one."""
    sides = [(samples[name], grid.system(name)) for name in (ours, theirs)]
    seeds = statistics.common_seeds(*(s for s, _ in sides))
    columns = [[statistics.column(s, seed) for seed in seeds] for s, _ in sides]
    accuracy = [s.value["accuracy"][c] for (s, _), c in zip(sides, columns, strict=True)]
    median = statistics.median_seed(accuracy[0] - accuracy[1])
    hits = [
        system.logits_SNK[c[median], part.rows].argmax(axis=1) == part.label_N
        for (_, system), c in zip(sides, columns, strict=True)
        if system is not None
    ]
    return statistics.paired_accuracy(hits[0], hits[1], part.query_N)


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
            figure = {} if share is None else _figure(share)
            rows.append({"name": system.name, "title": system.title, **figure})
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
            figures[name] = _figure(statistics.estimate(own, name, seed))
        else:
            sd = float(value_S.std(ddof=1)) if len(value_S) > 1 else math.nan
            figures[name] = {"value": float(value_S.mean()), "low": math.nan, "high": math.nan, "sd": sd}
    return figures


def _figure(e: Estimate) -> dict[str, float]:
    return {**asdict(e), "detectable": e.detectable}


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


def _slice_rows(grid: Grid, part: Slice, recipe: Recipe) -> dict[str, Any]:
    samples = _samples(grid, part, recipe, areas=False)
    systems = {name: _figures(own, recipe.seed) for name, own in samples.items()}
    return {**_described(part, recipe.label_scheme), "systems": systems}


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
    chosen = grid.record.get("tuning") or {}
    with (RECIPES / recipe.grid.tuning).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return [
        {
            "system": row["system"],
            "trial": row["trial"],
            "overrides": row["overrides"],
            "dev": row["dev"],
            "chosen": chosen.get(row["system"]) == row["overrides"],
        }
        for row in rows
        if row["system"] in recipe.grid.systems
    ]


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
