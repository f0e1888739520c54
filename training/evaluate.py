"""Stage `evaluate`: the figures of a split with intervals, beside the lexical baseline, as report.json.

Reading the test split is noted in OUT/test_reads.jsonl, which restarting the stage never empties.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from relevance.calibration import Calibrator, expected_gain, softmax
from relevance.errors import InputError, RecipeError
from relevance.labels import ESCI, ESCI_LEGACY_SWAPPED, LabelScheme
from relevance.policy import TierPolicy
from training.calibrate import CALIBRATION, POLICY, apply_calibrator, check_calibrated
from training.cut_points import rule_outcomes
from training.lexical_baseline import FOLDER as BASELINE
from training.measures import (
    Bootstrap,
    Scored,
    complete_lists,
    figures_with_intervals,
    locale_views,
    of_locale,
    paired_figures,
    view,
    without_exact_only,
)
from training.predictions import Predictions, read_predictions
from training.recipe import Recipe
from training.runs import Run, commit, hash_file, log, stage_arguments

REPORT = "report.json"
TEST_READS = "test_reads.jsonl"
ENGLISH = "us"
"""Policy locale of the English market, where the paired ranking and AUC comparison is made."""
PAIRED_CONFIDENCE = 0.9
"""The lower end of this interval is the bound that a comparison is judged by."""
PAIRED_ENGLISH = ("auc_exact", "auc_irrelevant", "ndcg_10")
PAIRED_ALL = ("macro_f1", "macro_f1_uncalibrated", "accuracy")


def main(argv: list[str]) -> int:
    """Run the stage.

    Raises: RunError: if an earlier stage has not finished; InputError: if predictions are missing or disagree.
    """
    run = stage_arguments(argv, "evaluate", __doc__)
    split = run.recipe.evaluate.split
    files = {
        "student": run.require("student") / f"predictions.{split}.parquet",
        "calibration": run.require("calibrate") / CALIBRATION,
        "policy": run.require("calibrate") / POLICY,
    }
    check_calibrated(run)
    if run.finished(BASELINE):
        files["baseline"] = run.path / BASELINE / f"predictions.{split}.parquet"
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise InputError(f"evaluate: expected the files {missing}, found none")
    hashes = {name: hash_file(path) for name, path in files.items()}
    inputs = {
        "recipe": run.recipe.evaluate.model_dump(mode="json"),
        "seed": run.recipe.seed,
        "scheme": run.recipe.label_scheme.to_dict(),
        "template": run.recipe.template.model_dump(mode="json"),
        "files": hashes,
    }
    with run.stage("evaluate", inputs) as folder:
        if folder is not None:
            if split == "test":
                _note_test_read(run, hashes)
            report = evaluate(run.recipe, files)
            (folder / REPORT).write_text(json.dumps(_plain(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            log.info("evaluate: %s split, %d pairs", split, report["views"]["all"]["n_pairs"])
    return 0


def evaluate(recipe: Recipe, files: dict[str, Path]) -> dict[str, Any]:
    """Give the report's content.

    Args: files: `student`, `calibration`, `policy` and, where there is one, `baseline`.
    Raises: InputError: if the split is empty or the baseline scored other pairs; RecipeError: as `gain_scheme`.
    """
    scheme, section = gain_scheme(recipe), recipe.evaluate
    calibrator = Calibrator.model_validate_json(files["calibration"].read_bytes())
    policy = TierPolicy.from_toml(files["policy"].read_bytes(), recipe.label_scheme)
    predictions = read_predictions(files["student"])
    if predictions.exact_only.all():
        raise InputError(f"{files['student']}: expected pairs from more than Exact-only sources, found none")
    student = score_rows(recipe, predictions, policy, calibrator)
    bootstrap = Bootstrap(section.draws, section.confidence, recipe.seed)
    fair = without_exact_only(student)
    report: dict[str, Any] = {
        "name": recipe.name,
        "split": section.split,
        "commit": commit(),
        "classes": list(scheme.classes),
        "titles": list(scheme.titles),
        "gains": list(scheme.gains),
        "legacy_swapped_gains": section.legacy_swapped_gains,
        "draws": section.draws,
        "confidence": section.confidence,
        "primary": "without_exact_only",
        "views": {
            "all": view(student, scheme, bootstrap),
            "without_exact_only": view(fair, scheme, bootstrap),
        },
        "locales": locale_views(fair, scheme, bootstrap),
        "policy": policy.model_dump(mode="json"),
        "calibration": calibrator.version,
        "baseline": None,
    }
    if "baseline" in files:
        report["baseline"] = compare(recipe, student, read_predictions(files["baseline"]), policy)
    return report


def gain_scheme(recipe: Recipe) -> LabelScheme:
    """Give the scheme whose gains the ranking measures use.

    Raises: RecipeError: if the legacy swapped gains are asked for under another scheme than ESCI.
    """
    scheme = recipe.label_scheme
    if not recipe.evaluate.legacy_swapped_gains:
        return scheme
    if scheme != ESCI:
        raise RecipeError(f"evaluate.legacy_swapped_gains: expected the scheme 'esci', found {scheme.name!r}")
    return ESCI_LEGACY_SWAPPED


def score_rows(
    recipe: Recipe, predictions: Predictions, policy: TierPolicy, calibrator: Calibrator | None = None
) -> Scored:
    """Turn logits into what the service would answer: probabilities, score, tier, kept.

    Args: calibrator: None takes the plain softmax, as the baseline does.
    """
    scheme, raw_NK = recipe.label_scheme, softmax(predictions.logits_NK)
    locales = np.array([policy.resolve(locale or None) for locale in predictions.locale.tolist()], dtype=np.str_)
    probabilities_NK = raw_NK if calibrator is None else apply_calibrator(calibrator, predictions.logits_NK, locales)
    score = expected_gain(probabilities_NK, scheme)
    queries = np.array([recipe.template.query_text(q) for q in predictions.query.tolist()], dtype=np.str_)
    predicted = raw_NK.argmax(axis=1) if calibrator is None else policy.labels(probabilities_NK, scheme)
    tier, kept = np.zeros(len(score), dtype=np.int64), np.ones(len(score), dtype=bool)
    names, inverse = np.unique(np.stack([queries, locales]), axis=1, return_inverse=True)
    for i, (query, locale) in enumerate(names.T.tolist()):
        rows = np.flatnonzero(inverse.ravel() == i)
        decision = policy.decide(score[rows], probabilities_NK[rows], scheme, policy_locale=locale, query=query)
        tier[rows], kept[rows] = decision.tier_B, decision.kept_B
    worst, best = rule_outcomes(policy, probabilities_NK, scheme, queries=queries, policy_locales=locales)
    return Scored(
        query_id=predictions.query_id,
        item_id=predictions.item_id,
        policy_locale=locales,
        label=predictions.label,
        predicted=predicted,
        exact_only=predictions.exact_only,
        raw_NK=raw_NK,
        probabilities_NK=probabilities_NK,
        score=score,
        tier=tier,
        kept=kept,
        kept_at_worst=worst,
        kept_at_best=best,
        ranked=complete_lists(predictions.query_id, predictions.source, predictions.exact_only),
    )


def compare(recipe: Recipe, student: Scored, predictions: Predictions, policy: TierPolicy) -> dict[str, Any]:
    """Set the student beside the baseline, on rows without the Exact-only sources.

    Returns: the baseline's figures, without those of filtering, and paired differences: for ranking and AUC on the
        English market where there is one, else and for classification on all locales.
    Raises: InputError: if the two scored different pairs.
    """
    scheme, section = gain_scheme(recipe), recipe.evaluate
    baseline = score_rows(recipe, predictions, policy)
    same = len(student) == len(baseline) and all(
        np.array_equal(getattr(student, name), getattr(baseline, name)) for name in ("query_id", "item_id", "label")
    )
    if not same:
        raise InputError(
            f"evaluate: expected student and baseline predictions of the same pairs in the same order, found "
            f"{len(student)} and {len(baseline)} that differ; run `relevance baseline` on this run's data again"
        )
    ours, theirs = without_exact_only(student), without_exact_only(baseline)
    paired = Bootstrap(section.draws, PAIRED_CONFIDENCE, recipe.seed)
    figures = figures_with_intervals(theirs, scheme, Bootstrap(section.draws, section.confidence, recipe.seed))
    market = ENGLISH if (ours.policy_locale == ENGLISH).any() else "all locales"
    english = paired_figures(
        of_locale(ours, ENGLISH), of_locale(theirs, ENGLISH), scheme, names=PAIRED_ENGLISH, bootstrap=paired
    )
    return {
        "name": "logistic regression on bi-encoder cosine and lexical overlap",
        "confidence": PAIRED_CONFIDENCE,
        # Of what is filtered nothing: the policy's cuts are the student's, certified on its calibrated scores.
        "figures": {
            name: {"value": i.value, "low": i.low, "high": i.high}
            for name, i in figures.items()
            if name not in ("false_filter_rate", "leak_rate")
        },
        "paired": {
            **{name: {"rows": market, **row} for name, row in english.items()},
            **{
                name: {"rows": "all locales", **row}
                for name, row in paired_figures(ours, theirs, scheme, names=PAIRED_ALL, bootstrap=paired).items()
            },
        },
    }


def _note_test_read(run: Run, files: dict[str, str]) -> None:
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "files": files}
    with (run.path / TEST_READS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give plain data in which nan, which JSON cannot hold, is None."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
