"""Study `calibration`: calibrators compared on the judged split, cut points re-drawn, the false-filter promise checked.

Everything is fitted on `cal` and judged on the recipe's split, without Exact-only sources. ECE is biased upward on few
pairs, and so are its bootstrap draws: compare rows of one scope. Suffixes: N pairs, K classes.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from relevance.calibration import softmax
from relevance.metrics import reliability
from relevance.metrics.intervals import Interval, query_bootstrap_many
from relevance.policy import POOLED
from training import charts
from training.calibrate import apply_calibrator, by_query_text, fit_calibrator, policy_locales, pooled_locales
from training.cut_points import FalseFilterRule
from training.measures import Bootstrap, reliability_of
from training.predictions import Predictions
from training.recipe import Recipe
from training.runs import Run, log
from training.studies.guarantee import check_guarantee, check_refitted, real_population, simulated_population
from training.studies.stability import CUTS, study_stability
from training.studies.study_run import (
    bootstrap_of,
    fair_predictions,
    markdown_table,
    served,
    shown,
    study_folder,
    study_parser,
    study_run,
    write_study,
)

Floats = NDArray[np.float64]
Method = Literal["temperature", "vector", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)
BEFORE = "none"
MEASURES = {
    "ece": reliability.top_label_ece,
    "classwise_ece": reliability.classwise_ece,
    "brier": reliability.brier,
}


def main(argv: list[str]) -> int:
    """Run the study.

    Raises: RunError: if the student has not been trained; InputError: if predictions are missing.
    """
    parser = study_parser("calibration", __doc__)
    parser.add_argument("--resamples", type=int, default=200, help="of the calibration queries")
    parser.add_argument("--simulations", type=int, default=1000, help="samples of each known population")
    arguments = parser.parse_args(argv)
    run = study_run(arguments)
    settings = {"resamples": arguments.resamples, "simulations": arguments.simulations}
    with study_folder(run, "calibration", settings) as folder:
        if folder is not None:
            result = study_calibration(run, folder, **settings)
            write_study(folder, result, render(result))
            log.info("study calibration: %s", folder)
    return 0


def study_calibration(run: Run, folder: Path, *, resamples: int, simulations: int) -> dict[str, Any]:
    """Give the three parts of the study, and write the reliability charts.

    Raises: RunError, InputError, RecipeError: if the run cannot be read or calibrated.
    """
    recipe, split = run.recipe, run.recipe.evaluate.split
    cal, test = (by_query_text(fair_predictions(run, part)) for part in ("cal", split))
    locale_N = policy_locales(test, recipe.calibrate)
    probabilities = {BEFORE: softmax(test.logits_NK)} | {
        method: _fitted(recipe, method, cal, test, locale_N) for method in METHODS
    }
    write_charts(folder, probabilities, test, locale_N)
    shipped = served(run, folder)
    return {
        "name": recipe.name,
        "split": split,
        "n_pairs": {"cal": len(cal), split: len(test)},
        "n_queries": {part: len(np.unique(rows.query_id)) for part, rows in (("cal", cal), (split, test))},
        "draws": recipe.evaluate.draws,
        "confidence": recipe.evaluate.confidence,
        "methods": compare_methods(probabilities, test, bootstrap_of(run), locale_N),
        "stability": study_stability(recipe, cal, test, shipped=shipped, resamples=resamples),
        "guarantee": check_promises(recipe, cal, test, simulations=simulations, refits=resamples),
    }


def compare_methods(
    probabilities: dict[str, Floats], test: Predictions, bootstrap: Bootstrap, locale_N: NDArray[np.str_]
) -> dict[str, dict[str, Any]]:
    """Give ECE, classwise ECE and Brier of each method, and the change from no calibration by the same draws.

    Args: probabilities: method → float64 of shape (N, K); `none` is the plain softmax; locale_N: policy locales.
    Returns: by scope (`pooled` holds all pairs, then each locale): n_pairs, n_queries and, by method and measure, the
        figure and its change.
    """
    scopes = {POOLED: np.ones(len(test), dtype=bool)} | {
        str(name): locale_N == name for name in np.unique(locale_N) if name
    }
    table = {}
    for scope, own in scopes.items():
        label_N, query_N = test.label[own], test.query_id[own]
        own_NK = {method: probabilities_NK[own] for method, probabilities_NK in probabilities.items()}

        def measures(
            rows: NDArray[np.int64], label_N: NDArray[np.int64] = label_N, own_NK: dict[str, Floats] = own_NK
        ) -> dict[str, float]:
            """Give the rows' figures and what calibration changes in them."""
            figures = {
                (method, name): measure(probabilities_NK[rows], label_N[rows])
                for method, probabilities_NK in own_NK.items()
                for name, measure in MEASURES.items()
            }
            changes = {f"{m} {n} change": value - figures[BEFORE, n] for (m, n), value in figures.items()}
            return {f"{m} {n}": value for (m, n), value in figures.items()} | changes

        intervals = query_bootstrap_many(
            query_N, measures, confidence=bootstrap.confidence, draws=bootstrap.draws, seed=bootstrap.seed
        )
        table[scope] = {
            "n_pairs": int(own.sum()),
            "n_queries": len(np.unique(query_N)),
            "figures": {m: {n: _figure(intervals, f"{m} {n}") for n in MEASURES} for m in own_NK},
        }
    return table


def check_promises(
    recipe: Recipe, cal: Predictions, test: Predictions, *, simulations: int, refits: int
) -> list[dict[str, Any]]:
    """Check the false-filter promise on simulated populations and on the real pairs, at the size of `cal`.

    Args: simulations: samples of each population; refits: samples with the calibrator fitted anew, which are slow.
    Returns: one summary a population; the real one is `cal` and the judged split together.
    """
    section, seed = recipe.calibrate, recipe.seed
    rule = FalseFilterRule(section.epsilon, section.confidence, seed)
    n_exact = len(np.unique(cal.query_id[cal.label == recipe.label_scheme.exact]))
    populations = [
        simulated_population("simulated, independent pairs", spread=0.0, seed=seed),
        simulated_population("simulated, pairs of a query alike", spread=1.5, seed=seed),
        simulated_population("simulated, hard queries have more Exact pairs", spread=1.0, size_effect=0.7, seed=seed),
    ]
    summaries = [
        check_guarantee(population, n_queries=n_exact, rule=rule, draws=simulations, seed=seed)
        for population in populations
    ]
    pool = joined(cal, test)
    n_queries = len(np.unique(cal.query_id))
    scores_NK = _fitted(recipe, section.method, cal, pool, pooled_locales(pool))
    real = real_population("real scores, re-sampled queries", recipe, pool, scores_NK)
    summaries.append(check_guarantee(real, n_queries=n_queries, rule=rule, draws=simulations, seed=seed))
    summaries.append(check_refitted(recipe, pool, n_queries=n_queries, draws=refits, seed=seed))
    return summaries


def joined(first: Predictions, second: Predictions) -> Predictions:
    """Put the rows of two predictions after one another."""
    columns = {name: np.concatenate([getattr(p, name) for p in (first, second)]) for name in Predictions.__slots__}
    return Predictions(**columns)


def write_charts(folder: Path, probabilities: dict[str, Floats], test: Predictions, locale_N: NDArray[np.str_]) -> None:
    """Write reliability.SCOPE.METHOD.svg for each scope and method: before and after."""
    for scope in (POOLED, *(str(name) for name in np.unique(locale_N) if name)):
        own = np.ones(len(test), dtype=bool) if scope == POOLED else locale_N == scope
        before = reliability_of(probabilities[BEFORE][own], test.label[own])
        for method in METHODS:
            bins = {"before": before, "after": reliability_of(probabilities[method][own], test.label[own])}
            name = re.sub(r"[^\w-]", "_", scope)
            (folder / f"reliability.{name}.{method}.svg").write_text(charts.reliability(bins), encoding="utf-8")


def render(result: dict[str, Any]) -> str:
    """Give the study as Markdown tables."""
    stability, promises = result["stability"], result["guarantee"]
    flips = "; ".join(
        f"{name}: {f['mean']:.1f} ({f['low']:.1f}–{f['high']:.1f})" for name, f in stability["flips_per_1000"].items()
    )
    return "\n".join(
        [
            f"Fitted on {result['n_pairs']['cal']:,} pairs of `cal`, judged on `{result['split']}`; "
            f"{100 * result['confidence']:g} % intervals by query. On few pairs ECE is biased upward, its draws "
            "more so: an interval may lie above its figure.\n",
            _method_table(result["methods"]),
            f"Cut points over {stability['resamples']} resamples of the calibration queries; ranges: 5 % to 95 %.\n",
            _cut_table(stability["cuts"]),
            f"Flips per 1,000 judged pairs, mean (5 %–95 %): {flips}.\n",
            f"The promise P(certified and false-filter rate > {promises[0]['epsilon']:g}) ≤ "
            f"{1 - promises[0]['nominal']:.2g} on known populations; the verdict rests on that share of all samples "
            "(broken). Coverage is the share of the certified alone that keep to the rate, which is not promised. Both "
            "speak of one Exact pair of each query; of all Exact pairs (by pairs) nothing is promised where hard "
            "queries have more of them.\n",
            _promise_table(promises),
        ]
    )


def _method_table(methods: dict[str, Any]) -> str:
    rows = []
    for scope, part in methods.items():
        for method, figures in part["figures"].items():
            change = "–" if method == BEFORE else shown(figures["ece"]["change"])
            rows.append([scope, method, f"{part['n_pairs']:,}", *(shown(figures[n]) for n in MEASURES), change])
    return markdown_table(["scope", "calibrator", "pairs", "ECE", "classwise ECE", "Brier", "change of ECE"], rows)


def _cut_table(scopes: dict[str, Any]) -> str:
    rows = []
    for scope, part in scopes.items():
        for cut in CUTS:
            m = part[cut]
            moved = [f"{m['moved']:.0%}", f"{m['shift']:.2f}", f"{m['low']:.2f}–{m['high']:.2f}"]
            rows.append([scope, cut, f"{m['reference']:.2f}", *moved, f"{part['certified_share']:.0%}"])
    header = ["locale", "cut", "shipped", "moved", "median shift", "range", "edge certified"]
    return markdown_table(header, rows)


def _promise_table(promises: list[dict[str, Any]]) -> str:
    rows = [
        [
            p["population"],
            str(p["n_queries"]),
            f"{p['certified']:,} of {p['draws']:,}",
            shown(p["broken"]),
            p["verdict"],
            shown(p["coverage"]),
            f"{p['mean_query_rate']:.3f}",
            shown(p["pair_broken"]),
            shown(p["pair_coverage"]),
            f"{p['mean_irrelevant_filtered']:.1%}",
        ]
        for p in promises
    ]
    header = ["population", "queries a sample", "certified", "broken", "verdict", "coverage", "mean true rate"]
    return markdown_table([*header, "broken by pairs", "coverage by pairs", "Irrelevant filtered"], rows)


def _fitted(recipe: Recipe, method: Method, cal: Predictions, rows: Predictions, locale_N: NDArray[np.str_]) -> Floats:
    section = recipe.calibrate.model_copy(update={"method": method})
    calibrator = fit_calibrator(section, cal, recipe.label_scheme)
    return apply_calibrator(calibrator, rows.logits_NK, locale_N)


def _figure(intervals: dict[str, Interval], key: str) -> dict[str, Any]:
    return asdict(intervals[key]) | {"change": asdict(intervals[f"{key} change"])}
