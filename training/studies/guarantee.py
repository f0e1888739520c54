"""Is a certified filter edge as safe as it says? Certify on many samples of a known population, look at the truth.

The promise is P(certified and true false-filter rate > epsilon) ≤ 1 − confidence over all samples, certified or not:
where few edges are certified, more of those may be wrong, so their coverage is shown beside it and decides nothing.
What is certified is the rate of one Exact pair drawn from each query, so `query_rate` averages over queries;
`pair_rate` averages over all Exact pairs and differs where hard queries have more of them.
Suffix: N pairs, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from training.calibrate import apply_calibrator, cal_rows_of, fit_calibrator, pooled_locales
from training.cut_points import CalRows, FalseFilterRule, certify_edge
from training.predictions import Predictions
from training.recipe import Recipe
from training.studies.stability import Resample, held_out_probabilities, resample_queries, with_rules_that_hold

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SIMULATED_QUERIES = 20_000


@dataclass(frozen=True, slots=True)
class Population:
    """All pairs that there are: what is true of them is known.

    Args: rows: as certification reads them; irrelevant_N: bool, pairs of the least relevant class.
    """

    name: str
    rows: CalRows
    irrelevant_N: Bools


def simulated_population(
    name: str, *, spread: float, size_effect: float = 0.0, n_queries: int = SIMULATED_QUERIES, seed: int = 0
) -> Population:
    """Make queries whose pairs score alike: logit(score) = ±1.5 + spread · ease of the query + noise, both normal.

    Args: spread: 0 makes pairs independent; size_effect: s of the number of Exact pairs, 1 + Poisson(2 exp(-s · ease)),
        so that with s > 0 hard queries have more of them.
    """
    rng = np.random.default_rng(seed)
    ease_Q = rng.normal(size=n_queries)
    n_exact_Q = 1 + rng.poisson(2 * np.exp(-size_effect * ease_Q))
    n_irrelevant_Q = rng.poisson(1.0, n_queries)
    query_N = np.concatenate([np.repeat(np.arange(n_queries), n) for n in (n_exact_Q, n_irrelevant_Q)])
    exact_N = np.arange(len(query_N)) < n_exact_Q.sum()
    logit_N = np.where(exact_N, 1.5, -1.5) + spread * ease_Q[query_N] + rng.normal(size=len(query_N))
    nothing_N = np.zeros(len(query_N), dtype=bool)
    rows = CalRows(query_N.astype(np.str_), exact_N, 1 / (1 + np.exp(-logit_N)), nothing_N, nothing_N, ~nothing_N)
    return Population(name, rows, ~exact_N)


def real_population(name: str, recipe: Recipe, rows: Predictions, probabilities_NK: Floats) -> Population:
    """Take real pairs with pooled scores, business rules included, as if there were no others."""
    cal_rows = cal_rows_of(recipe, rows, probabilities_NK, pooled_locales(rows))
    return Population(name, cal_rows, rows.label == recipe.label_scheme.irrelevant)


def query_weights(rows: CalRows) -> Floats:
    """Give each Exact pair the chance that it is the one drawn of an evenly drawn query with Exact pairs; else 0."""
    _, inverse, counts = np.unique(rows.query_id[rows.exact], return_inverse=True, return_counts=True)
    weight_N = np.zeros(len(rows))
    weight_N[rows.exact] = 1 / counts[inverse] / len(counts)
    return weight_N


def query_rate(rows: CalRows, filtered_N: Bools) -> float:
    """Give the chance that a query's Exact pair, drawn evenly from its Exact pairs, is filtered; mean over queries."""
    return float(query_weights(rows) @ filtered_N)


def check_guarantee(
    population: Population, *, n_queries: int, rule: FalseFilterRule, draws: int, seed: int = 0
) -> dict[str, Any]:
    """Certify an edge on many samples of queries with replacement, and count how often it keeps its promise.

    Returns: as `summary`.
    """
    rows = population.rows
    weight_N = query_weights(rows)
    rng = np.random.default_rng(seed)
    names, inverse, sizes = np.unique(rows.query_id, return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    outcomes = []
    for draw in tqdm(range(draws), desc=population.name, disable=None):
        drawn = rng.integers(0, len(names), n_queries)
        sample = rows.rows(np.concatenate([groups[q] for q in drawn]))
        copies = replace(sample, query_id=np.repeat(np.arange(n_queries), sizes[drawn]).astype(np.str_))
        edge = certify_edge(copies, replace(rule, seed=draw))
        filtered_N = rows.filtered(edge.cut)
        outcomes.append(_outcome(population, edge.certified, filtered_N, float(weight_N @ filtered_N)))
    return summary(population.name, n_queries, rule, outcomes)


def check_refitted(recipe: Recipe, pool: Predictions, *, n_queries: int, draws: int, seed: int = 0) -> dict[str, Any]:
    """Do the same with the whole stage: calibrator and pooled edge are fitted anew on each sample of a real pool.

    The edge is certified on cross-fitted scores and judged on the pool as scored by the final calibrator.
    Returns: as `summary`.
    """
    name, rng = "real logits, calibrator and edge refitted", np.random.default_rng(seed)
    section, scheme, pooled_N = recipe.calibrate, recipe.label_scheme, pooled_locales(pool)
    outcomes = []
    for draw in tqdm(range(draws), desc=name, disable=None):
        sample: Resample = resample_queries(pool, rng, n_queries)
        held_out_NK = held_out_probabilities(section, sample, recipe, pooled=True)
        rule = FalseFilterRule(section.epsilon, section.confidence, draw)
        drawn = with_rules_that_hold(recipe, sample.rows)
        edge = certify_edge(cal_rows_of(drawn, sample.rows, held_out_NK, pooled_locales(sample.rows)), rule)
        calibrator = fit_calibrator(section, sample.rows, scheme)
        population = real_population(name, recipe, pool, apply_calibrator(calibrator, pool.logits_NK, pooled_N))
        filtered_N = population.rows.filtered(edge.cut)
        outcomes.append(_outcome(population, edge.certified, filtered_N, query_rate(population.rows, filtered_N)))
    return summary(name, n_queries, FalseFilterRule(section.epsilon, section.confidence), outcomes)


def summary(name: str, n_queries: int, rule: FalseFilterRule, outcomes: list[dict[str, float]]) -> dict[str, Any]:
    """Count broken and kept promises.

    Args: outcomes: of each draw: certified, query_rate, pair_rate, irrelevant_filtered.
    Returns: broken, the share of all draws that certify an edge whose true query rate is above epsilon, on which the
        verdict rests; coverage, the share of certified edges whose rate is not above it; both with two-sided 95 %
        Clopper–Pearson intervals; the same of the pair rate; mean rates and share of Irrelevant filtered of the
        certified.
    """
    certified = [o for o in outcomes if o["certified"]]
    figures: dict[str, Any] = {
        "population": name,
        "n_queries": n_queries,
        "draws": len(outcomes),
        "epsilon": rule.epsilon,
        "nominal": rule.confidence,
        "certified": len(certified),
    }
    for rate, prefix in (("query_rate", ""), ("pair_rate", "pair_")):
        kept = sum(o[rate] <= rule.epsilon for o in certified)
        figures[f"{prefix}broken"] = _share_with_interval(len(certified) - kept, len(outcomes))
        figures[f"{prefix}coverage"] = _share_with_interval(kept, len(certified))
        figures[f"mean_{rate}"] = float(np.mean([o[rate] for o in certified])) if certified else float("nan")
    removed = [o["irrelevant_filtered"] for o in certified]
    figures["mean_irrelevant_filtered"] = float(np.mean(removed)) if removed else float("nan")
    figures["verdict"] = _verdict(figures["broken"], 1 - rule.confidence) if certified else "nothing was certified"
    return figures


def _outcome(population: Population, certified: bool, filtered_N: Bools, rate: float) -> dict[str, float]:
    irrelevant_N = population.irrelevant_N
    return {
        "certified": certified,
        "query_rate": rate,
        "pair_rate": float(filtered_N[population.rows.exact].mean()),
        "irrelevant_filtered": float(filtered_N[irrelevant_N].mean()) if irrelevant_N.any() else float("nan"),
    }


def _share_with_interval(count: int, among: int) -> dict[str, float]:
    if not among:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    interval = stats.binomtest(count, among).proportion_ci(0.95, method="exact")
    return {"value": count / among, "low": float(interval.low), "high": float(interval.high)}


def _verdict(broken: dict[str, float], allowed: float) -> str:
    if broken["high"] <= allowed:
        return "kept"
    return "broken" if broken["low"] > allowed else "undecided"
