"""Study `robustness`: what a small change of query or title does to tier, label and score.

A suite that keeps the truth should change nothing; one that makes it false is tried on Exact pairs, whose score should
fall. The student scores both forms here and now. Suffix: N pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from relevance.errors import InputError
from relevance.labels import LabelScheme
from relevance.metrics.classification import macro_f1
from relevance.metrics.intervals import query_bootstrap_many, with_rare_events
from relevance.pairs import LabelledPair, Pair, read_labelled_pairs
from training.evaluate import score_rows
from training.measures import Bootstrap, Scored
from training.predictions import predictions_of
from training.runs import Run, log
from training.student.batches import readable
from training.student.model import load_student
from training.student.predict import predict
from training.studies.perturbations import Suite, Truth, perturbed, suites
from training.studies.study_run import (
    bootstrap_of,
    fair_predictions,
    markdown_table,
    pairs_of,
    served,
    shown,
    student_folder,
    study_folder,
    study_parser,
    study_run,
    write_study,
)

NAME = "robustness"
SWAP_BRANDS = 200
"""Brands are swapped for one of the so many most frequent ones of the training pairs."""
FIGURES = ("tier_flips", "kept_flips", "label_flips", "macro_f1_change", "score_change", "score_fell", "score_rose")


def main(argv: list[str]) -> int:
    """Run the study.

    Raises: RunError: if there is no student; InputError: if its predictions or the data are missing.
    """
    parser = study_parser(NAME, __doc__)
    parser.add_argument("--pairs", type=int, default=500, help="at most so many pairs a suite")
    arguments = parser.parse_args(argv)
    if arguments.pairs < 1:
        raise InputError(f"study robustness, --pairs: expected at least 1, found {arguments.pairs}")
    run = study_run(arguments)
    with study_folder(run, NAME, {"pairs": arguments.pairs}) as folder:
        if folder is not None:
            result = study_robustness(run, folder, limit=arguments.pairs)
            write_study(folder, result, render(result))
            log.info("study robustness: %s", folder)
    return 0


def study_robustness(run: Run, folder: Path, *, limit: int) -> dict[str, Any]:
    """Give the figures of each suite on at most `limit` pairs of the judged split, drawn by the recipe's seed.

    Raises: RunError, InputError, RecipeError: if the run cannot be read or calibrated.
    """
    recipe, split = run.recipe, run.recipe.evaluate.split
    calibrator, policy = served(run, folder)
    student, tokenizer = load_student(student_folder(run))
    pairs = pairs_of(run, fair_predictions(run, split), split)
    order = np.random.default_rng(recipe.seed).permutation(len(pairs))
    pairs = [pairs[i] for i in order]

    def scored(chosen: list[LabelledPair]) -> Scored:
        logits_NK = predict(student, tokenizer, [p.pair for p in chosen])
        return score_rows(recipe, predictions_of(chosen, logits_NK, recipe.label_scheme), policy, calibrator)

    figures = {}
    for suite in tqdm(suites(frequent_brands(run)), desc="suites", disable=None):
        found = applied(suite, pairs, recipe.label_scheme, seed=recipe.seed)
        fits = readable([after for _, after in found], student.config.template, tokenizer)
        found = [both for both, fit in zip(found, fits, strict=True) if fit]
        chosen = found[:limit]
        row: dict[str, Any] = {"truth": suite.truth, "applies": len(found) / len(pairs), "n_pairs": len(chosen)}
        if chosen:
            before = scored([labelled for labelled, _ in chosen])
            after = scored([_relabelled(labelled, pair) for labelled, pair in chosen])
            row |= {"n_queries": len(np.unique(before.query_id))}
            row |= compare(before, after, recipe.label_scheme, bootstrap_of(run))
        figures[suite.name] = row
    return {
        "name": recipe.name,
        "split": split,
        "n_pairs": len(pairs),
        "draws": recipe.evaluate.draws,
        "confidence": recipe.evaluate.confidence,
        "suites": figures,
    }


def frequent_brands(run: Run) -> tuple[str, ...]:
    """Give the most frequent brands of the training pairs, of which swaps are drawn."""
    path = run.require("data") / "pairs.train.parquet"
    counts = Counter(p.pair.item.brand for p in read_labelled_pairs(path, run.recipe.label_scheme) if p.pair.item.brand)
    return tuple(brand for brand, _ in counts.most_common(SWAP_BRANDS))


def applied(
    suite: Suite, pairs: Sequence[LabelledPair], scheme: LabelScheme, *, seed: int
) -> list[tuple[LabelledPair, Pair]]:
    """Give the pairs that a suite applies to, each with its perturbed form; Exact ones only where the truth falls."""
    exact = scheme.classes[scheme.exact]
    eligible = [p for p in pairs if suite.truth == "kept" or p.label == exact]
    both = ((p, perturbed(suite, p.pair, seed)) for p in eligible)
    return [(p, after) for p, after in both if after is not None]


def compare(before: Scored, after: Scored, scheme: LabelScheme, bootstrap: Bootstrap) -> dict[str, dict[str, float]]:
    """Give the share of tiers, kept flags and labels that changed, and what happened to macro-F1 and the score.

    Args: before, after: the same pairs in the same order.
    Returns: by name of `FIGURES`: value, low, high.
    """
    score_N = after.score - before.score
    shares: dict[str, NDArray[np.float64]] = {
        "tier_flips": (after.tier != before.tier).astype(np.float64),
        "kept_flips": (after.kept != before.kept).astype(np.float64),
        "label_flips": (after.predicted != before.predicted).astype(np.float64),
        "score_change": score_N,
        "score_fell": (score_N < 0).astype(np.float64),
        "score_rose": (score_N > 0).astype(np.float64),
    }

    def measures(rows: NDArray[np.int64]) -> dict[str, float]:
        f1 = [macro_f1(before.label[rows], s.predicted[rows], scheme.n_classes) for s in (after, before)]
        return {name: float(value_N[rows].mean()) for name, value_N in shares.items()} | {
            "macro_f1_change": f1[0] - f1[1]
        }

    intervals = query_bootstrap_many(
        before.query_id, measures, confidence=bootstrap.confidence, draws=bootstrap.draws, seed=bootstrap.seed
    )
    n_queries = len(np.unique(before.query_id))
    for name in ("tier_flips", "kept_flips", "label_flips", "score_fell", "score_rose"):
        intervals[name] = with_rare_events(intervals[name], n_queries, confidence=bootstrap.confidence)
    return {name: asdict(intervals[name]) for name in FIGURES}


def render(result: dict[str, Any]) -> str:
    """Give the study as Markdown tables, one for suites that keep the truth and one for those that do not."""
    head = ["suite", "applies to", "pairs", "tier flips"]
    return (
        f"{result['n_pairs']:,} pairs of `{result['split']}`; {100 * result['confidence']:g} % intervals by query.\n\n"
        "What is true of the pair stays true:\n\n"
        + markdown_table(
            [*head, "kept flips", "change of macro-F1", "score fell", "change of score"],
            _rows(result, "kept", ("tier_flips", "kept_flips", "macro_f1_change", "score_fell", "score_change")),
        )
        + "\nAn Exact pair is no longer Exact, so its score should fall, and by more than at a mere typo:\n\n"
        + markdown_table(
            [*head, "score fell", "change of score"],
            _rows(result, "falls", ("tier_flips", "score_fell", "score_change")),
        )
    )


def _rows(result: dict[str, Any], truth: Truth, names: Sequence[str]) -> list[list[str]]:
    return [
        [suite, f"{row['applies']:.1%}", f"{row['n_pairs']:,}"]
        + [shown(row[name]) if row["n_pairs"] else "–" for name in names]
        for suite, row in result["suites"].items()
        if row["truth"] == truth
    ]


def _relabelled(labelled: LabelledPair, pair: Pair) -> LabelledPair:
    return LabelledPair(pair, labelled.label, labelled.source, labelled.exact_only)
