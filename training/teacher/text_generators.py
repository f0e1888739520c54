"""The text generator that a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relevance.errors import RecipeError, RunError
from training.runs import Run
from training.teacher.generator import TextGenerator
from training.teacher.local_generator import LocalGenerator
from training.teacher.openai_client import OpenAiGenerator
from training.teacher.programmatic_generator import ProgrammaticGenerator
from training.teacher.prompts import PromptBook

STORE = "answers.jsonl"
"""File of a run in which a server's answers are kept: outside every stage's folder, so that no stage empties it."""


def make_text_generator(
    run: Run, policy: str | Path | None, *, store: Path | None = None, label_logprobs: bool = False
) -> TextGenerator:
    """Build the generator of `teacher.sampling`.

    Args: policy: folder or hub name of the model to sample, for `local` only; store: file of a server's paid answers,
        None for the run's own; label_logprobs: ask a server for log-probabilities at the label.
    Raises: RecipeError: if `local` is given no policy, or `openai` no model; RunError: if a stage that it reads has not
        finished, or the policy was fine-tuned with another prompt book or another `thinking`.
    """
    recipe = run.recipe.teacher
    sampling, scheme = recipe.sampling, run.recipe.label_scheme
    if sampling.kind == "openai":
        return OpenAiGenerator(sampling, store or run.path / STORE, scheme, label_logprobs=label_logprobs)
    if sampling.kind == "programmatic":
        return ProgrammaticGenerator(run)
    if policy is None:
        raise RecipeError("teacher.sampling.kind = 'local': expected the folder or hub name of a policy, found none")
    from training.teacher.policy import load_policy

    loaded = load_policy(
        policy, revision=recipe.revision, fingerprint=PromptBook.load(recipe.prompt, scheme).fingerprint
    )
    if loaded.record is not None and loaded.record.thinking != sampling.thinking:
        raise RunError(
            f"{loaded.name}: expected teacher.sampling.thinking = {str(loaded.record.thinking).lower()}, as it was "
            f"fine-tuned, found {str(sampling.thinking).lower()}"
        )
    return LocalGenerator(loaded, sampling, seed=run.recipe.seed)


def ledger_figures(generator: TextGenerator) -> dict[str, Any]:
    """Give requests, tokens, cost and errors of a generator that counts them, for the run's ledger; else nothing."""
    return generator.ledger.figures() if isinstance(generator, OpenAiGenerator) else {}
