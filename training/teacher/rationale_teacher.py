"""Whose rationales a student learns from: the run's own teacher, or a finished one that `rationales.teacher` names."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from relevance.errors import RecipeError, RunError
from training.recipe import Recipe
from training.runs import DONE, INPUTS, OF_A_FOLD, Run, hash_file, log
from training.teacher_recipe import ASIDE

_RECIPE = "recipe.json"
_PAIRS = "pairs.train.parquet"


def rationale_teacher(run: Run) -> Run:
    """Give the run as its writer of rationales sees it: with the teacher's recipe section and its policy.

    A named teacher, such as one of `relevance teachers`, keeps the section it was trained with; pairs, the base model's
    answers and all that is written stay the run's.

    Raises: RunError: if the named folder is no teacher's, was fitted on other pairs, or the run has a teacher of its
        own, which would answer instead; RecipeError: if the teachers of folds are asked for too.
    """
    named = run.recipe.rationales.teacher
    if named is None:
        return run
    if run.recipe.teacher.folds > 1:
        raise RecipeError(
            f"rationales.teacher: expected null with teacher.folds = {run.recipe.teacher.folds}, whose teachers write "
            f"the rationales, found {named!r}"
        )
    folder = run.path / named
    teacher = _recipe_of(folder).teacher
    own = sorted(stage for stage in OF_A_FOLD if (run.path / stage / DONE).is_file())
    if own:
        raise RunError(
            f"rationales.teacher = {named!r}: expected no other teacher in {run.path}, found its stages {own}; for "
            "that one set rationales.teacher=null"
        )
    _check_pairs(run, folder)
    # Who answers, and where, is this run's business: the folder's recipe is that of the last stage that ran there.
    here = run.recipe.teacher.sampling.model_dump(include={*ASIDE, "kind", "model"})
    teacher = teacher.model_copy(update={"sampling": teacher.sampling.model_copy(update=here)})
    return Run(run.recipe.model_copy(update={"teacher": teacher}), run.path, shared=folder)


def _recipe_of(folder: Path) -> Recipe:
    """Read what a teacher was trained with.

    Raises: RunError: if there is no recipe, or none of this version.
    """
    try:
        return Recipe.model_validate_json((folder / _RECIPE).read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(f"{folder}: expected the folder of a finished teacher, with {_RECIPE}: {error}") from error


def _check_pairs(run: Run, folder: Path) -> None:
    """Refuse a teacher whose preferences were made of other pairs: which ones it saw would be told wrongly.

    Warns of one that has none, such as a single perspective's without DPO.
    """
    answered = folder / "preference_answers" / INPUTS
    if not answered.is_file():
        log.warning("%s: has no preference answers, so that its pairs are this run's cannot be checked", folder)
        return
    theirs = json.loads(answered.read_text(encoding="utf-8"))["inputs"]["files"][_PAIRS]
    ours = hash_file(run.require("data") / _PAIRS)
    if theirs != ours:
        raise RunError(
            f"{folder}: expected a teacher of this run's training pairs ({ours[:12]}), found one of others "
            f"({theirs[:12]})"
        )
