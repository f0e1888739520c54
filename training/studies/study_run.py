"""What the studies share: the run or fit they read, what a service would answer of it, and the files they write.

Of a grid's fit the run folder is OUT/fits/SYSTEM/seed_S and earlier stages are looked up in OUT.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relevance.calibration import Calibrator
from relevance.errors import InputError, RunError
from relevance.metrics.intervals import Interval
from relevance.pairs import LabelledPair, read_labelled_pairs
from relevance.policy import TierPolicy
from training.calibrate import CALIBRATION, POLICY, calibrate, check_calibrated
from training.evaluate import TEST_READS
from training.measures import Bootstrap
from training.predictions import Predictions, read_predictions
from training.recipe import load_recipe
from training.runs import DONE, Run, commit, hash_file

RESULT = "result.json"
TABLE = "table.md"


def study_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Give the options of every study: `--recipe`, `--out`, `--set a.b=value`, `--fit SYSTEM/seed_S`."""
    parser = argparse.ArgumentParser(prog=f"relevance study {name}", description=description)
    parser.add_argument("--recipe", required=True, help="the recipe of the run: a shipped name, or a TOML file")
    parser.add_argument("--out", required=True, type=Path, help="run directory of a pipeline or a grid")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override one recipe key")
    parser.add_argument("--fit", metavar="SYSTEM/seed_S", help="one fit of a grid, None for the pipeline's student")
    return parser


def study_run(arguments: argparse.Namespace) -> Run:
    """Give the run that the options name.

    Raises: RecipeError: if the recipe or an override is wrong; RunError: if the grid has no such fit.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    recipe = load_recipe(arguments.recipe, arguments.set)
    if arguments.fit is None:
        return Run(recipe, arguments.out)
    path = arguments.out / "fits" / arguments.fit
    if not path.is_dir():
        raise RunError(f"{path}: expected the folder of a grid's fit, found none")
    return Run(recipe, path, arguments.out)


@contextmanager
def study_folder(run: Run, name: str, settings: Mapping[str, Any]) -> Iterator[Path | None]:
    """Open the folder studies/NAME of a run; yields None when the study already finished with the same inputs.

    Args: settings: the study's own options.
    Reading the test split is noted in test_reads.jsonl, as `relevance evaluate` does.
    """
    student, split = student_folder(run), run.recipe.evaluate.split
    files = {part: hash_file(_predictions(student, part)) for part in ("cal", split)}
    calibrated = _calibrated(run)
    recipe = run.recipe.model_dump(mode="json")
    inputs = {
        **{part: recipe[part] for part in ("seed", "scheme", "template", "calibrate", "evaluate")},
        "settings": dict(settings),
        "calibrated": None if calibrated is None else [hash_file(calibrated / name) for name in (CALIBRATION, POLICY)],
        "files": files,
    }
    with run.stage(f"studies/{name}", inputs) as folder:
        if folder is not None and split == "test":
            line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "study": name}
            with (run.path / TEST_READS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"files": files}) + "\n")
        yield folder


def of_this_student(run: Run, name: str) -> bool:
    """Say whether another study of this run read the very predictions that lie there."""
    files = run.inputs_of(f"studies/{name}").get("files", {})
    student = student_folder(run)
    return bool(files) and all(hash_file(_predictions(student, part)) == told for part, told in files.items())


def student_folder(run: Run) -> Path:
    """Give the folder of predictions and weights; a grid's systems without training have no weights in theirs.

    Raises: RunError: if the pipeline's student has not been trained.
    """
    return run.require("student") if run.shared is None else run.path / "student"


def fair_predictions(run: Run, split: str) -> Predictions:
    """Give a split's predictions without the Exact-only sources, which say nothing about class shares.

    Raises: RunError: if there is no student; InputError: if there are no predictions, or none are left.
    """
    path = _predictions(student_folder(run), split)
    predictions = read_predictions(path)
    if predictions.exact_only.all():
        raise InputError(f"{path}: expected pairs from more than Exact-only sources, found none")
    return predictions.rows(~predictions.exact_only)


def pairs_of(run: Run, predictions: Predictions, split: str) -> list[LabelledPair]:
    """Give the labelled pairs that predictions are of, in their order.

    Raises: InputError: if the run's data lacks one of them.
    """
    path = run.require("data") / f"pairs.{split}.parquet"
    by_id = {p.pair.pair_id: p for p in read_labelled_pairs(path, run.recipe.label_scheme)}
    missing = [pair_id for pair_id in predictions.pair_id.tolist() if pair_id not in by_id]
    if missing:
        raise InputError(
            f"{path}: expected the {len(predictions)} pairs that were scored, found {len(missing)} missing"
        )
    return [by_id[pair_id] for pair_id in predictions.pair_id.tolist()]


def served(run: Run, folder: Path) -> tuple[Calibrator, TierPolicy]:
    """Give the run's calibrator and policy; a grid's fit, which has none, is calibrated into the study's folder.

    Raises: InputError, RecipeError: as `training.calibrate.calibrate`; RunError: if the run's calibrator is of another
        student than lies there.
    """
    calibrated = _calibrated(run)
    if calibrated is not None:
        folder = calibrated
    else:
        calibrate(run.recipe, read_predictions(_predictions(student_folder(run), "cal")), folder)
    calibrator = Calibrator.model_validate_json((folder / CALIBRATION).read_bytes())
    return calibrator, TierPolicy.from_toml((folder / POLICY).read_bytes(), run.recipe.label_scheme)


def _calibrated(run: Run) -> Path | None:
    """Give the folder of the calibrator of this very student, None where there is none; a grid's fit has its own.

    Raises: RunError: if it is of other predictions.
    """
    if not (run.path / "calibrate" / DONE).is_file():
        return None
    check_calibrated(run)
    return run.path / "calibrate"


def bootstrap_of(run: Run) -> Bootstrap:
    """Give the recipe's settings of the query bootstrap."""
    section = run.recipe.evaluate
    return Bootstrap(section.draws, section.confidence, run.recipe.seed)


def write_study(folder: Path, result: Mapping[str, Any], table: str) -> None:
    """Write result.json, in which nan and infinities are null, and table.md."""
    text = json.dumps(_plain(result), indent=1, allow_nan=False)
    (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    (folder / TABLE).write_text(table, encoding="utf-8")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def shown(interval: Interval | Mapping[str, float], digits: int = 3) -> str:
    """Give `value [low, high]`, a dash where there is no value."""
    if isinstance(interval, Interval):
        value, low, high = interval.value, interval.low, interval.high
    else:
        value, low, high = (interval[key] for key in ("value", "low", "high"))
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _predictions(student: Path, split: str) -> Path:
    path = student / f"predictions.{split}.parquet"
    if not path.is_file():
        raise InputError(f"{path}: expected predictions, found no file")
    return path


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
