"""The scored rows of a run's student: its predictions, calibrated and tiered as a service would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from relevance.calibration import Calibrator
from relevance.errors import InputError, RunError
from relevance.policy import TierPolicy
from training.calibrate import CALIBRATION, POLICY, check_calibrated
from training.evaluate import TEST_READS, score_rows
from training.inspection.reading import Judge, ScoredRow
from training.predictions import read_predictions
from training.recipe import Recipe
from training.runs import Run, commit, hash_file

RECIPE = "recipe.json"


def open_run(path: Path) -> tuple[Run, Judge]:
    """Give a run by its directory, and who judged in it.

    Raises: RunError: if the directory holds no run of this version, or its student was not calibrated, or was
            trained again since.
    """
    try:
        recipe = Recipe.model_validate_json((path / RECIPE).read_bytes())
    except OSError as error:
        raise RunError(f"{path}: expected a run directory with a {RECIPE}, found none") from error
    except ValidationError as error:
        raise RunError(f"{path / RECIPE}: expected a recipe of this version: {error}") from error
    run = Run(recipe, path)
    run.require("calibrate")
    check_calibrated(run)
    policy = TierPolicy.from_toml((run.require("calibrate") / POLICY).read_bytes(), recipe.label_scheme)
    return run, Judge(recipe.label_scheme, policy, recipe.template)


def files_of(run: Run, split: str) -> tuple[Path, Path]:
    """Give the files of a split: predictions and pairs.

    Raises: RunError: if a stage has not finished; InputError: if there are no predictions of this split.
    """
    predictions = run.require("student") / f"predictions.{split}.parquet"
    if not predictions.is_file():
        found = sorted(file.name.split(".")[1] for file in predictions.parent.glob("predictions.*.parquet"))
        raise InputError(f"{predictions}: expected predictions of split {split!r}, found those of {found}")
    return predictions, run.require("data") / f"pairs.{split}.parquet"


def scored_rows_of(run: Run, judge: Judge, predictions: Path) -> Iterator[ScoredRow]:
    """Give what a service would answer of each pair, in the order of the predictions.

    Raises: RunError: if the student was not calibrated; InputError: if the file is not one of predictions.
    """
    calibrator = Calibrator.model_validate_json((run.require("calibrate") / CALIBRATION).read_bytes())
    scored = score_rows(run.recipe, read_predictions(predictions), judge.policy, calibrator)
    for row in range(len(scored)):
        yield ScoredRow(
            number=row + 1,
            query_id=str(scored.query_id[row]),
            item_id=str(scored.item_id[row]),
            score=float(scored.score[row]),
            tier=int(scored.tier[row]),
            predicted=int(scored.predicted[row]),
            kept=bool(scored.kept[row]),
            policy_locale=str(scored.policy_locale[row]),
            probabilities=tuple(scored.probabilities_NK[row].tolist()),
        )


def note_test_read(run: Run, predictions: Path) -> None:
    """Note in the run that its test split was looked at, as `relevance evaluate` does."""
    files = {"inspect": hash_file(predictions)}
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "files": files}
    with (run.path / TEST_READS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
