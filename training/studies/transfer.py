"""Study `transfer`: figures of each slice of the judged split, held-out categories and brands beside the main part.

A slice is told by the source of its pairs; `main` is what training saw the like of. Suffix: N pairs.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.labels import LabelScheme
from relevance.metrics.intervals import query_bootstrap_many
from training.evaluate import gain_scheme, score_rows
from training.measures import Bootstrap, Scored, always_most_relevant, class_figures, figures_with_intervals
from training.runs import Run, log
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

MAIN = "main"
SHOWN = ("macro_f1", "accuracy", "auc_exact", "auc_irrelevant", "ndcg_10", "ece", "false_filter_rate", "leak_rate")
COMPARED = ("macro_f1", "accuracy", "auc_exact", "auc_irrelevant")


def main(argv: list[str]) -> int:
    """Run the study.

    Raises: RunError: if the student has not been trained; InputError: if predictions are missing.
    """
    run = study_run(study_parser("transfer", __doc__).parse_args(argv))
    with study_folder(run, "transfer", {}) as folder:
        if folder is not None:
            result = study_transfer(run, folder)
            write_study(folder, result, render(result))
            log.info("study transfer: %s", folder)
    return 0


def study_transfer(run: Run, folder: Path) -> dict[str, Any]:
    """Give the figures of each slice and, where there is a slice `main`, how much the others lose against it.

    Raises: RunError, InputError, RecipeError: if the run cannot be read or calibrated.
    """
    recipe, split = run.recipe, run.recipe.evaluate.split
    calibrator, policy = served(run, folder)
    test = fair_predictions(run, split)
    scored, scheme = score_rows(recipe, test, policy, calibrator), gain_scheme(recipe)
    return {
        "name": recipe.name,
        "split": split,
        "draws": recipe.evaluate.draws,
        "confidence": recipe.evaluate.confidence,
        "slices": slices(scored, test.source, scheme, bootstrap_of(run)),
    }


def slices(
    scored: Scored, source_N: NDArray[np.str_], scheme: LabelScheme, bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Give by slice: n_pairs, n_queries, figures with intervals, what one constant answer gets, and the difference.

    Returns: `main` first; difference: slice - main by draws of all queries, None without a slice `main` and for it.
    """
    names = sorted(set(source_N.tolist()), key=lambda name: (name != MAIN, name))
    differences = _differences(scored, source_N, scheme, bootstrap) if MAIN in names else {}
    table = {}
    for name in names:
        own = scored.rows(source_N == name)
        figures = figures_with_intervals(own, scheme, bootstrap)
        table[name] = {
            "n_pairs": len(own),
            "n_queries": len(np.unique(own.query_id)),
            "figures": {key: asdict(figures[key]) for key in SHOWN},
            "always_most_relevant": always_most_relevant(own.label, scheme),
            "difference": differences.get(name),
        }
    return table


def render(result: dict[str, Any]) -> str:
    """Give the study as Markdown tables."""
    header = ["slice", "pairs", "queries", "macro-F1", "accuracy", "always Exact", "AUC Exact", "AUC Irrelevant"]
    rows = [
        [name, f"{part['n_pairs']:,}", f"{part['n_queries']:,}"]
        + [shown(part["figures"][key]) for key in ("macro_f1", "accuracy")]
        + [f"{part['always_most_relevant']['accuracy']:.3f}"]
        + [shown(part["figures"][key]) for key in ("auc_exact", "auc_irrelevant", "ndcg_10", "ece")]
        for name, part in result["slices"].items()
    ]
    text = markdown_table([*header, "nDCG@10", "ECE"], rows)
    lost = [
        [name, *(shown(part["difference"][key]) for key in COMPARED)]
        for name, part in result["slices"].items()
        if part["difference"] is not None
    ]
    if lost:
        names = ["slice - main", "macro-F1", "accuracy", "AUC Exact", "AUC Irrelevant"]
        text += "\nDifferences from the slice `main`.\n\n" + markdown_table(names, lost)
    return text


def _differences(
    scored: Scored, source_N: NDArray[np.str_], scheme: LabelScheme, bootstrap: Bootstrap
) -> dict[str, dict[str, dict[str, float]]]:
    others = sorted(set(source_N.tolist()) - {MAIN})

    def measures(rows: NDArray[np.int64]) -> dict[str, float]:
        """Give what each slice of the rows has more than the main one."""
        drawn, source = scored.rows(rows), source_N[rows]
        figures = {
            name: class_figures(drawn.rows(source == name), scheme) if (source == name).any() else {}
            for name in (MAIN, *others)
        }
        nan = float("nan")
        return {
            f"{name}\t{key}": figures[name].get(key, nan) - figures[MAIN].get(key, nan)
            for name in others
            for key in COMPARED
        }

    intervals = query_bootstrap_many(
        scored.query_id, measures, confidence=bootstrap.confidence, draws=bootstrap.draws, seed=bootstrap.seed
    )
    return {name: {key: asdict(intervals[f"{name}\t{key}"]) for key in COMPARED} for name in others}
