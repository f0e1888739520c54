"""What the SFT policy answers about the reserved pairs, kept apart from what is chosen among its answers.

The answers lie in `preference_answers/samples.jsonl`, in a folder of their own: other rules of choosing ask nothing
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relevance.pairs import LabelledPair
from training.runs import Run, hash_file
from training.teacher.forecast import tell_requests
from training.teacher.generator import TextGenerator
from training.teacher.policy import POLICY, policy_identity
from training.teacher.prompts import PromptBook
from training.teacher.samples import sample_pairs, write_samples
from training.teacher.text_generators import make_text_generator, noted
from training.teacher_recipe import ASIDE

FOLDER = "preference_answers"
SAMPLES = "samples.jsonl"


def answer_inputs(run: Run, samples: int) -> dict[str, Any]:
    """Give all that decides the answers, as plain data to be hashed.

    Args: samples: answers a pair and perspective.
    Raises: RunError: if an earlier stage has not finished.
    """
    teacher, recipe = run.recipe.teacher, run.recipe.teacher.preferences
    return {
        "samples": samples,
        "pairs": recipe.model_dump(mode="json", include={"reserved", "perspectives", "asked_pairs"}),
        "sampling": teacher.sampling.model_dump(mode="json", exclude=ASIDE),
        "prompt": PromptBook.load(teacher.prompt, run.recipe.label_scheme).fingerprint,
        "folds": [teacher.folds, teacher.fold],
        "seed": run.recipe.seed,
        "policy": policy_identity(run.require("sft") / POLICY),
        "files": {"pairs.train.parquet": hash_file(run.require("data") / "pairs.train.parquet")},
    }


def ask_policy(run: Run, pairs: Sequence[LabelledPair], samples: int) -> Path:
    """Ask a run's SFT policy about pairs under each perspective's prompt, unless that has been done.

    Args: pairs: of `training.teacher.parts.preference_pairs`.
    Returns: the file of the answers.
    Raises: RunError: if an earlier stage has not finished.
    """
    recipe, scheme = run.recipe.teacher, run.recipe.label_scheme
    with run.stage(FOLDER, answer_inputs(run, samples), resumable=True) as folder:
        if folder is not None and not (folder / SAMPLES).is_file():
            generator = policy_generator(run, run.require("sft") / POLICY)
            book = PromptBook.load(recipe.prompt, scheme)
            views = recipe.preferences.perspectives
            tell_requests(run, "preferences", [one.pair for one in pairs], views, samples=samples)
            with noted(run, "preferences", generator):
                write_samples(
                    folder / SAMPLES,
                    [one.pair for one in pairs],
                    lambda rest: sample_pairs(generator, book, scheme, rest, views, samples=samples),
                )
    return run.path / FOLDER / SAMPLES


def policy_generator(run: Run, policy: Path) -> TextGenerator:
    """Give what answers as the SFT policy; the programmatic generator stands in for the base model only."""
    teacher = run.recipe.teacher
    if teacher.sampling.kind == "programmatic":
        local = teacher.model_copy(update={"sampling": teacher.sampling.model_copy(update={"kind": "local"})})
        run = replace(run, recipe=run.recipe.model_copy(update={"teacher": local}))
    return make_text_generator(run, policy)
