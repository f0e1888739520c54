"""What a comparison of teachers reads and asks for, by its recipe's arithmetic, before anything runs.

Bounds of pairs may be exceeded by a query, as whole queries are asked about; what CRSD's teacher reads of the
platform's text before its rationales is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.grid.systems import System, overridden
from training.grid.teacher_systems import MPCOT, SAME_SIZE, TEACHERS
from training.recipe import Recipe
from training.teacher.judge import needs_choice
from training.teacher.policy import PRETRAIN_STAGE
from training.teacher_recipe import TeacherRecipe

_POLICIES = 2
"""SFT's and DPO's: both answer the gate's pairs and are judged."""


@dataclass(frozen=True, slots=True)
class TeacherBudget:
    """The recipe's bounds of one teacher and seed; None where it alone does not say.

    Args: sft_tokens: read over all epochs, prompts and answers; preferences, gate, judge: answers asked for.
    """

    sft_tokens: int | None
    preferences: int | None
    gate: int
    judge: int | None

    @property
    def answers(self) -> int | None:
        """All answers asked for."""
        asked = (self.preferences, self.gate, self.judge)
        return None if None in asked else sum(one for one in asked if one is not None)


def budget_lines(recipe: Recipe, systems: Sequence[System], seeds: int) -> list[str]:
    """Give the budget in words: shared stages, each teacher, and all answers together.

    Answers that are on file from before are counted too, and are not asked for again.

    Args: systems: the teachers that are to run; seeds: of each.
    """
    teacher, lines = recipe.teacher, []
    if PRETRAIN_STAGE in recipe.stages:
        tokens = teacher.pretrain.steps * teacher.pretrain.batch_size * teacher.pretrain.context
        lines.append(f"{PRETRAIN_STAGE} reads {tokens:,} tokens")
    pairs = generated_pairs(recipe)
    asked = _times(pairs, len(teacher.perspectives) * teacher.generate.samples)
    lines.append(f"generate asks for {_words(asked)} answers, once for all teachers")
    total = asked
    for system in systems:
        own = budget_of(recipe, system)
        every = _times(own.answers, seeds)
        total = None if total is None or every is None else total + every
        lines.append(
            f"{system.name}: SFT reads {_words(own.sft_tokens)} tokens; {_words(own.preferences)} answers for "
            f"preferences, {own.gate:,} for the gate, {_words(own.judge)} for judging; times {seeds} seeds "
            f"{_words(every)} answers"
        )
    written = _times(total, teacher.sampling.max_new_tokens)
    lines.append(f"in all {_words(total)} answers, {_words(written)} tokens written")
    return lines


def budget_of(recipe: Recipe, system: System) -> TeacherBudget:
    """Give the bounds of one teacher; a control that is matched to MPCoT has MPCoT's where it is matched."""
    teacher = overridden(recipe, {**system.overrides, "teacher.preferences.same_size_as": None}).teacher
    sized = overridden(recipe, TEACHERS[MPCOT].overrides).teacher if SAME_SIZE in system.overrides else teacher
    learned = len(teacher.equal_tokens_with or teacher.perspectives)
    rows = _times(generated_pairs(recipe), learned * teacher.generate.kept_per_view)
    tokens = None if rows is None else int(rows * teacher.sft.epochs * teacher.sft.max_tokens)
    drawn = len(sized.preferences.perspectives) * sized.preferences.samples
    return TeacherBudget(
        sft_tokens=tokens,
        preferences=_times(_least(teacher.preferences.asked_pairs, train_pairs(recipe)), drawn),
        gate=_POLICIES * teacher.dpo.gate_pairs,
        judge=_times(_judged(teacher), _POLICIES),
    )


def train_pairs(recipe: Recipe) -> int | None:
    """Give the training pairs of a synthetic marketplace; of other sources only the data tell."""
    world = recipe.data.marketplace
    return world.queries.get("train", 0) * world.candidates if recipe.data.source == "marketplace" else None


def generated_pairs(recipe: Recipe) -> int | None:
    """Give how many pairs stage `generate` may ask about."""
    return _least(recipe.teacher.generate.max_pairs, train_pairs(recipe))


def _judged(teacher: TeacherRecipe) -> int | None:
    """Give the answers of one policy's judgement."""
    judge, views = teacher.judge, len(teacher.perspectives)
    if judge.pairs is None:
        return None
    drawn = min(judge.pairs, judge.draw_pairs or judge.pairs) * views * judge.samples
    choice = judge.choice_pairs * views if needs_choice(teacher) else 0
    return judge.pairs + drawn + choice + min(judge.pairs, judge.faithfulness_pairs)


def _least(*bounds: int | None) -> int | None:
    return min((one for one in bounds if one is not None), default=None)


def _times(value: int | None, factor: int) -> int | None:
    return None if value is None else value * factor


def _words(value: int | None) -> str:
    return "as many as the data ask for" if value is None else f"{value:,}"
