"""What a small decoder from scratch reads: platform text, chat documents, and both packed into windows.

No document holds its pair's gold label: chat documents end with the annotator's own guess. Suffixes: N windows, L
tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from relevance.errors import RunError
from relevance.pairs import Item, Pair
from training.recipe import View
from training.teacher.generator import Prompt, TextGenerator, prompt_key
from training.teacher.prompts import PromptBook

Chat = tuple[Mapping[str, str], ...]
_OPEN_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one document.

    Args: read: so many of the first are read and never predicted: the first one at least.
    """

    ids: list[int]
    read: int = 1


@dataclass(frozen=True, slots=True)
class Windows:
    """N windows of L tokens, each of whole documents where they fit.

    Args: input_ids_NL: int64; position_ids_NL: int64, from 0 in every document, so that a model that reads them
        (transformers' packed-sequence mask) sees no other document; trained_NL: bool, false for the first token of a
        document, which nothing predicts, for others that are only read, and for padding.
    """

    input_ids_NL: NDArray[np.int64]
    position_ids_NL: NDArray[np.int64]
    trained_NL: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.input_ids_NL)


def platform_texts(pairs: Iterable[Pair]) -> list[str]:
    """Give each item's page and each query once, in the order of the pairs: text without any label."""
    texts: dict[str, None] = {}
    for pair in pairs:
        texts.setdefault(_page(pair.item))
        texts.setdefault(pair.query.text)
    return [text for text in texts if text.strip()]


def instructions(
    generator: TextGenerator,
    book: PromptBook,
    pairs: Sequence[Pair],
    views: Sequence[View],
    *,
    count: int,
    seed: int,
) -> list[Chat]:
    """Give chat documents: the prompt of one view and the generator's first answer to it.

    Args: pairs: that the generator can answer about; count: documents wanted, fewer where pairs run out.
    Returns: them, in an order that depends on the pairs and the seed alone; unanswered ones are left out.
    """
    jobs = [(pair, view) for pair in pairs if pair.item.title.strip() for view in views]
    random.Random(f"instructions {seed}").shuffle(jobs)
    asked = {prompt_key(pair.pair_id, view): tuple(book.messages(pair, view)) for pair, view in jobs[:count]}
    prompts = (Prompt(key, messages, samples=1) for key, messages in asked.items())
    answers = {done.key: done.text for done in generator.complete(prompts) if done.error is None}
    return [
        (*messages, {"role": "assistant", "content": answers[key]}) for key, messages in asked.items() if key in answers
    ]


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Give the token ids of texts, each with an end of text."""
    return [Encoded([*ids, tokenizer.pad_token_id]) for ids in _token_ids(texts, tokenizer)]


def encode_chats(
    chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase, *, thinking: bool, answers_only: bool = False
) -> list[Encoded]:
    """Give the token ids of whole chats.

    Args: answers_only: everything before the last message's own words is read and not predicted.
    """
    encoded = _token_ids([_rendered(chat, tokenizer, thinking) for chat in chats], tokenizer)
    if not answers_only:
        return [Encoded(ids) for ids in encoded]
    starts = [_rendered(chat[:-1], tokenizer, thinking, add_generation_prompt=True) for chat in chats]
    prompts = _token_ids(starts, tokenizer)
    return [Encoded(ids, _shared(prompt, ids)) for prompt, ids in zip(prompts, encoded, strict=True)]


def _rendered(chat: Chat, tokenizer: PreTrainedTokenizerBase, thinking: bool, **options: bool) -> str:
    text: str = tokenizer.apply_chat_template(list(chat), tokenize=False, enable_thinking=thinking, **options)
    return text


def _token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return ids


def _shared(start: Sequence[int], whole: Sequence[int]) -> int:
    """Count the first tokens that two sequences have in common."""
    differ = (place for place, (left, right) in enumerate(zip(start, whole, strict=False)) if left != right)
    return next(differ, min(len(start), len(whole)))


def check_chats(encoded: Sequence[Encoded], context: int) -> None:
    """Make sure that no chat is longer than a window, where its label would be cut off.

    Raises: RunError: if one is.
    """
    longest = max((len(chat.ids) for chat in encoded), default=0)
    if longest > context:
        over = sum(len(chat.ids) > context for chat in encoded)
        raise RunError(
            f"teacher.pretrain.context: expected instructions of at most {context} tokens, found {over} longer ones, "
            f"up to {longest}; raise it (and teacher.decoder.context) or choose a shorter prompt book"
        )


def pack(documents: Iterable[Encoded], context: int, pad_id: int) -> Windows:
    """Pack documents into windows, best fit among the open ones; what is longer than a window is cut into pieces."""
    closed: list[list[Encoded]] = []
    opened: list[tuple[int, list[Encoded]]] = []
    pieces = (
        Encoded(document.ids[start : start + context], max(1, document.read - start))
        for document in documents
        for start in range(0, len(document.ids), context)
    )
    for piece in pieces:
        fitting = [i for i, (room, _) in enumerate(opened) if room >= len(piece.ids)]
        if fitting:
            room, parts = opened.pop(min(fitting, key=lambda i: opened[i][0]))
        else:
            room, parts = context, []
        parts.append(piece)
        opened.append((room - len(piece.ids), parts))
        if len(opened) > _OPEN_WINDOWS:
            closed.append(opened.pop(min(range(len(opened)), key=lambda i: opened[i][0]))[1])
    return _arrays([*closed, *(parts for _, parts in opened)], context, pad_id)


def _arrays(windows: list[list[Encoded]], context: int, pad_id: int) -> Windows:
    input_ids_NL = np.full((len(windows), context), pad_id)
    position_ids_NL = np.zeros((len(windows), context), dtype=np.int64)
    trained_NL = np.zeros((len(windows), context), dtype=bool)
    for row, parts in enumerate(windows):
        start = 0
        for part in parts:
            end = start + len(part.ids)
            input_ids_NL[row, start:end] = part.ids
            position_ids_NL[row, start:end] = np.arange(len(part.ids))
            trained_NL[row, start + part.read : end] = True
            start = end
        position_ids_NL[row, start:] = np.arange(context - start)
    return Windows(input_ids_NL, position_ids_NL, trained_NL)


def _page(item: Item) -> str:
    """Give an item's page as text: title, then every named field."""
    fields = {"brand": item.brand, "color": item.color, **item.attributes}
    named = "; ".join(f"{name}: {value}" for name, value in fields.items() if value)
    return "\n".join(part for part in (item.title, named, item.text) if part)
