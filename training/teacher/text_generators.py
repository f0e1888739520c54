"""The text generator that a recipe names: who is asked, under which name, and where a server's answers are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from relevance.errors import RecipeError, RunError
from training.runs import Run
from training.teacher.generator import TextGenerator
from training.teacher.local_generator import LocalGenerator
from training.teacher.openai_client import OpenAiGenerator
from training.teacher.policy import base_policy_identity, load_policy, policy_identity
from training.teacher.programmatic_generator import ProgrammaticGenerator
from training.teacher.prompts import PromptBook
from training.teacher_recipe import SamplingRecipe, TeacherRecipe

STORE = "answers.jsonl"
"""File of a run in which a server's answers are kept: outside every stage's folder, so that no stage empties it."""
ANSWERS = "answers"
"""Folder of a run with further such files, for what is asked by several processes, or about large sets."""
FOLD_MARK = "{fold}"


def make_text_generator(
    run: Run,
    policy: str | Path | None,
    *,
    store: Path | None = None,
    known: Sequence[Path] = (),
    label_logprobs: bool = False,
) -> TextGenerator:
    """Build the generator of `teacher.sampling`.

    A server is asked for the base model by `teacher.sampling.model`, for a fine-tuned policy by
    `teacher.sampling.policy_model`; what the policy's folder holds is part of every stored answer's key, so that a
    policy that was trained again under the same name gives answers of its own.

    Args: policy: folder or hub name of the model that answers; None for the base model, where a server answers for it;
        store: file of a server's paid answers, None for the run's own; known: other files of such answers, which are
        only read; label_logprobs: ask a server for log-probabilities at the label.
    Raises: RecipeError: if `local` is given no policy, or `openai` has no name for what is asked; RunError: if a stage
        that it reads has not finished, or the policy was fine-tuned with another prompt book or another `thinking`.
    """
    recipe = run.recipe.teacher
    sampling, scheme = recipe.sampling, run.recipe.label_scheme
    if sampling.kind == "openai":
        identity = base_policy_identity(run) if policy is None else policy_identity(policy, recipe.revision)
        served = sampling if policy is None else sampling.model_copy(update={"model": served_name(recipe)})
        label_at: Literal["first", "last"] = "last" if recipe.prompt.reasoning_order == "think_first" else "first"
        return OpenAiGenerator(
            served,
            store or run.path / STORE,
            scheme,
            identity=identity,
            known=known,
            label_at=label_at if label_logprobs else None,
        )
    if sampling.kind == "programmatic":
        return ProgrammaticGenerator(run)
    if policy is None:
        raise RecipeError("teacher.sampling.kind = 'local': expected the folder or hub name of a policy, found none")
    loaded = load_policy(
        policy, revision=recipe.revision, fingerprint=PromptBook.load(recipe.prompt, scheme).fingerprint
    )
    if loaded.record is not None and loaded.record.thinking != sampling.thinking:
        raise RunError(
            f"{loaded.name}: expected teacher.sampling.thinking = {str(loaded.record.thinking).lower()}, as it was "
            f"fine-tuned, found {str(sampling.thinking).lower()}"
        )
    return LocalGenerator(loaded, sampling, seed=run.recipe.seed)


def answers_path(run: Run, name: str) -> Path:
    """Give the file of a run that keeps the paid answers of this name."""
    return run.path / ANSWERS / f"{name}.jsonl"


def served_name(recipe: TeacherRecipe) -> str:
    """Give the server's name for a run's fine-tuned policy.

    Raises: RecipeError: if the recipe has none, or gives the base model's.
    """
    sampling = recipe.sampling
    if sampling.policy_model is None or sampling.policy_model == sampling.model:
        raise RecipeError(
            "teacher.sampling.policy_model: expected the server's name for the run's fine-tuned policy, found "
            f"{_told(sampling)}; serve its folder (OUT/sft/policy for preferences; for later stages OUT/dpo/policy, "
            "or OUT/sft/policy if dpo/report.json ships sft) under a name of its own and add "
            "--set teacher.sampling.policy_model=NAME"
        )
    return sampling.policy_model.replace(FOLD_MARK, str(recipe.fold))


@contextmanager
def noted(run: Run, stage: str, generator: TextGenerator) -> Iterator[None]:
    """Note in the run's ledger what this asking took, also when it ends with an error; earlier ones are noted already.

    Requests, tokens, cost and errors of a generator that counts them; of any other nothing.
    """
    ledger = generator.ledger if isinstance(generator, OpenAiGenerator) else None
    before = None if ledger is None else ledger.copied()
    try:
        yield
    finally:
        if ledger is not None and before is not None:
            run.note(stage, **ledger.since(before).figures())


def _told(sampling: SamplingRecipe) -> str:
    return "none" if sampling.policy_model is None else f"{sampling.policy_model!r}, which is the base model's"
