"""What a stage is about to ask: how many answers, for how much money, and whether what comes fits into fine-tuning.

A server's answers are paid for before SFT finds a row too long, so lengths are looked at before the first request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from relevance.errors import RecipeError
from relevance.pairs import Pair
from training.recipe import View
from training.runs import Run, log
from training.teacher.policy import base_policy, load_tokenizer
from training.teacher.prompts import PromptBook
from training.teacher.sft_rows import asked_view

_LOOKED_AT = 200
"""Prompts from which the mean length is estimated."""
_CHARACTERS_A_TOKEN = 3
"""Fewer than English prose has, so that lengths are over-estimated; other scripts are counted by characters."""


def tell_requests(run: Run, stage: str, pairs: Sequence[Pair], views: Sequence[View], *, samples: int) -> None:
    """Log how many answers a stage may ask for, and, where the recipe gives prices, what they may cost at most.

    Answers that are kept from before are counted too, and cost nothing.
    """
    recipe = run.recipe.teacher
    sampling, answers = recipe.sampling, len(pairs) * len(views) * samples
    log.info("%s: %d pairs, up to %d answers", stage, len(pairs), answers)
    if sampling.kind == "openai" and (sampling.prompt_price or sampling.completion_price) and answers:
        book = PromptBook.load(recipe.prompt, run.recipe.label_scheme)
        some = pairs[:: max(1, len(pairs) // _LOOKED_AT)]
        tokens = sum(estimated_tokens(book.messages(pair, view)) for pair in some for view in views)
        mean = tokens / (len(some) * len(views))
        cost = answers * (mean * sampling.prompt_price + sampling.max_new_tokens * sampling.completion_price) / 1e6
        log.info("%s: at most about %.2f by teacher.sampling's prices, with %.0f tokens a prompt", stage, cost, mean)


def check_room(run: Run, pairs: Sequence[Pair]) -> None:
    """Warn of pairs whose row may be too long for SFT: its prompt and the longest answer.

    Tokens are counted where the base model is sampled here, and over-estimated from characters where a server answers.

    Raises: RecipeError: if counted prompts alone leave no room for an answer.
    """
    recipe = run.recipe.teacher
    if recipe.sampling.kind == "programmatic":
        return
    book, view = PromptBook.load(recipe.prompt, run.recipe.label_scheme), asked_view(recipe)
    if recipe.sampling.kind == "local":
        tokenizer = load_tokenizer(base_policy(run), revision=recipe.revision)
        lengths = [
            len(
                tokenizer.apply_chat_template(
                    book.messages(pair, view), add_generation_prompt=True, enable_thinking=recipe.sampling.thinking
                )
            )
            for pair in pairs
        ]
        full = sum(length >= recipe.sft.max_tokens for length in lengths)
        if full:
            raise RecipeError(
                f"teacher.sft.max_tokens: expected room for prompt and answer in {recipe.sft.max_tokens} tokens, found "
                f"{full} of {len(pairs)} prompts that fill them, up to {max(lengths)}; raise it, or show fewer item "
                "fields (teacher.prompt.fields)"
            )
    else:
        lengths = [estimated_tokens(book.messages(pair, view)) for pair in pairs]
    long = sum(length + recipe.sampling.max_new_tokens > recipe.sft.max_tokens for length in lengths)
    if long:
        log.warning(
            "generate: %d of %d pairs may be too long for SFT, which stops at such a row: prompts of up to %d tokens "
            "and answers of up to %d, where teacher.sft.max_tokens = %d",
            long,
            len(pairs),
            max(lengths),
            recipe.sampling.max_new_tokens,
            recipe.sft.max_tokens,
        )


def estimated_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Estimate, rather too high, the tokens of a prompt."""
    text = "".join(message["content"] for message in messages)
    plain = sum(character.isascii() for character in text)
    return math.ceil(plain / _CHARACTERS_A_TOKEN) + len(text) - plain
