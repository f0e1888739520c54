"""Rows of supervised fine-tuning: prompt and answer, in tokens, with the proof that none is cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from relevance.errors import RunError
from relevance.pairs import read_pairs
from training.rationale_rows import Rationale
from training.recipe import View
from training.runs import Run
from training.teacher.documents import platform_texts
from training.teacher.keep import kept_rows
from training.teacher.parts import fold_of
from training.teacher.prompts import PromptBook
from training.teacher_recipe import TeacherRecipe
from training.words import query_unit

_HELD_OUT = "sft-eval:"
_HELD_OUT_SHARE = 0.05
_TEXTS_AT_ONCE = 1000
IGNORED = -100
"""Label of a token that has no loss."""


@dataclass(frozen=True, slots=True)
class SftRow:
    """A prompt and the answer to learn; without a prompt, `completion` is plain text to read.

    Args: pair_id: "" for plain text.
    """

    pair_id: str
    prompt: tuple[Mapping[str, str], ...]
    completion: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the training, after which the next goes on with the weights.

    Args: name: of its folder; epochs: None for the recipe's.
    """

    name: str
    rows: tuple[SftRow, ...]
    epochs: float | None = None


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row in tokens.

    Args: input_ids: int32 of shape (L,), four bytes a token, because each process of a training holds all rows;
        n_prompt: how many of the tokens are prompt, which has no loss.
    """

    pair_id: str
    input_ids: NDArray[np.int32]
    n_prompt: int

    def features(self) -> dict[str, NDArray[np.int32]]:
        """Give the columns that a trainer reads."""
        labels = self.input_ids.copy()
        labels[: self.n_prompt] = IGNORED
        return {"input_ids": self.input_ids, "labels": labels}


def asked_view(teacher: TeacherRecipe) -> View:
    """Give the prompt that a fine-tuned teacher learns and is asked with.

    It is the unified one, which names no perspective (eq. 2). A teacher of one perspective is asked for that one: it
    never learned to choose, and Best-SingleCoT of the paper is prompted with its own perspective. LREF's curriculum
    never trains on the unified prompt; its own is the one with the rules.
    """
    if teacher.method == "progressive":
        return "rule"
    return teacher.perspectives[0] if len(teacher.perspectives) == 1 else "unified"


def sft_rows(run: Run) -> tuple[SftRow, ...]:
    """Give a row for each kept rationale: the asked view's prompt, and the rationale with its label.

    The answer is written anew in the prompt book's format, so that what the parser had to repair is not learned.

    Raises: RunError: if stage `generate` has not finished or kept nothing.
    """
    recipe = run.recipe.teacher
    book = PromptBook.load(recipe.prompt, run.recipe.label_scheme)
    view = asked_view(recipe)
    rows = []
    for labelled, sample in kept_rows(run):
        rationale = Rationale(
            pair_id=sample.pair_id,
            perspective=sample.view,
            evidence=sample.evidence,
            rationale=sample.rationale,
            verdict=labelled.label,
            generator=sample.generator,
            annotator_seen_pair=False,
        )
        prompt = tuple(book.messages(labelled.pair, view))
        rows.append(SftRow(sample.pair_id, prompt, book.response(rationale, labelled.label)))
    if not rows:
        raise RunError(f"{run.folder('generate')}: expected kept rationales of {recipe.perspectives}, found none")
    return tuple(rows)


def text_rows(run: Run) -> tuple[SftRow, ...]:
    """Give the platform text of the training pairs, for CRSD's continued pre-training (arXiv:2510.11056).

    Pairs of the fold that the teacher leaves out are not read.
    """
    folds, fold = run.recipe.teacher.folds, run.recipe.teacher.fold
    every = read_pairs(run.require("data") / "pairs.train.parquet")
    pairs = (pair for pair in every if folds == 1 or fold_of(pair.query.text, folds) != fold)
    return tuple(SftRow("", (), text) for text in platform_texts(pairs))


def split_held_out(rows: Sequence[SftRow]) -> tuple[list[SftRow], list[SftRow]]:
    """Split rows into those to learn and those whose loss is only measured; a query's rows stay together."""
    held_out: list[SftRow] = []
    learned: list[SftRow] = []
    for row in rows:
        query_id = row.pair_id.partition("\t")[0]
        (held_out if query_id and query_unit(query_id, _HELD_OUT) < _HELD_OUT_SHARE else learned).append(row)
    return learned, held_out


def encode_rows(
    rows: Sequence[SftRow], tokenizer: PreTrainedTokenizerBase, *, thinking: bool, max_tokens: int
) -> list[EncodedRow]:
    """Turn rows into tokens, none of which is lost: TRL would keep the start of a long row and cut off its label.

    Args: thinking: the chat template's `enable_thinking`; max_tokens: of a row, which may not be longer than the model
        reads either. Longer plain texts become several rows.
    Raises: RunError: if a chat is longer, or its prompt is not how the whole chat starts; the pair is named.
    """
    max_tokens = min(max_tokens, tokenizer.model_max_length)
    texts = [row for row in rows if not row.prompt]
    chats = [row for row in rows if row.prompt]
    encoded = []
    for ids in _ids((row.completion for row in texts), tokenizer):
        whole = np.append(ids, np.int32(tokenizer.eos_token_id))
        encoded += [EncodedRow("", whole[at : at + max_tokens], 0) for at in range(0, len(whole), max_tokens)]
    prompts = _ids((_rendered(row, tokenizer, thinking, whole=False) for row in chats), tokenizer)
    wholes = _ids((_rendered(row, tokenizer, thinking, whole=True) for row in chats), tokenizer)
    for row, prompt, whole in zip(chats, prompts, wholes, strict=True):
        if not np.array_equal(whole[: len(prompt)], prompt):
            raise RunError(
                f"pair {row.pair_id!r}: expected the chat to start with its prompt; the chat template of the base "
                f"model writes the prompt of an answered chat in another way"
            )
        encoded.append(EncodedRow(row.pair_id, whole, len(prompt)))
    _check_lengths(encoded, max_tokens)
    return encoded


def padded_rows(rows: Sequence[EncodedRow], multiple: int, pad_id: int) -> list[EncodedRow]:
    """Add rows without loss up to a multiple, so that several processes each see every row once and none twice."""
    missing = -len(rows) % multiple
    return [*rows, *([EncodedRow("", np.array([pad_id], dtype=np.int32), 1)] * missing)]


def _check_lengths(rows: Sequence[EncodedRow], max_tokens: int) -> None:
    longer = [row for row in rows if len(row.input_ids) > max_tokens]
    if longer:
        worst = max(longer, key=lambda row: len(row.input_ids))
        raise RunError(
            f"teacher.sft.max_tokens, or the base model: expected rows of at most {max_tokens} tokens, found "
            f"{len(longer)} longer ones; the longest, of pair {worst.pair_id!r}, has {worst.n_prompt} tokens of prompt "
            f"and {len(worst.input_ids) - worst.n_prompt} of answer, whose end, with the label, would be cut"
        )


def _rendered(row: SftRow, tokenizer: PreTrainedTokenizerBase, thinking: bool, *, whole: bool) -> str:
    answer = [{"role": "assistant", "content": row.completion}] if whole else []
    text: str = tokenizer.apply_chat_template(
        [*row.prompt, *answer], tokenize=False, add_generation_prompt=not whole, enable_thinking=thinking
    )
    return text


def _ids(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[NDArray[np.int32]]:
    rest = iter(texts)
    while part := list(islice(rest, _TEXTS_AT_ONCE)):
        found = tokenizer(part, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        yield from (np.array(ids, dtype=np.int32) for ids in found)
