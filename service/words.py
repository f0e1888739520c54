"""Words of the texts that a model read, each with its share of the token weights, as JSON.

A word ends at a blank, or where ideographs begin or end. A BERT tokenizer goes word by word there, so a word has as
many tokens alone as in its text, and what is known of a word serves every text that has it.
Suffixes: B pairs, L tokens, W words of all pairs, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from operator import add

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from relevance.tokenization import PairTokenizer
from service.json_numbers import json_numbers

_IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
"""What BERT's normaliser puts blanks around, block by block as its table has them."""
_WORD = re.compile(f"[{_IDEOGRAPHS}]+ *|[^ {_IDEOGRAPHS}]+ *")
_MOST_KNOWN, _LONGEST_KNOWN = 20_000, 64
"""Words that are remembered, and characters that such a word may have."""


class Words:
    """What is known of words by themselves; any thread may call any method."""

    def __init__(self, tokenizer: PairTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, bytes]] = {}

    def fits(self, texts: Sequence[str]) -> bool:
        """Whether the tokenizer goes word by word over these texts."""
        whole = map(len, self._tokenizer.encode_texts(texts))
        return all(n == sum(count for count, _ in self.entries(cut(t))) for n, t in zip(whole, texts, strict=True))

    def entries(self, words: list[str]) -> list[tuple[int, bytes]]:
        """Give each word's tokens and the beginning of its JSON as a word of an item."""
        known = self._known
        try:
            return list(map(known.__getitem__, words))
        except KeyError:
            pass
        here = {word: known[word] for word in words if word in known}
        new = list(dict.fromkeys(word for word in words if word not in here))
        counts = map(len, self._tokenizer.encode_texts(new))
        here.update((word, (n, _head(word, "item"))) for word, n in zip(new, counts, strict=True))
        if len(known) > _MOST_KNOWN:
            self._known = known = {}
        known.update((word, here[word]) for word in new[:_MOST_KNOWN] if len(word) <= _LONGEST_KNOWN)
        return [here[word] for word in words]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The words that were read of some pairs, one pair's after the other's, those of the query first.

    Args: heads: the beginning of each word's JSON; row_W: its pair; start_W, end_W: its tokens' places in the pair;
        first: number of the first word of each pair, and of all words.
    """

    heads: list[bytes]
    row_W: NDArray[np.int64]
    start_W: NDArray[np.int64]
    end_W: NDArray[np.int64]
    first: list[int]


class Reading:
    """The words of the pairs of one query; used on one thread at a time.

    Args: words: None weighs none; query, items: cleaned texts; n_query, n_item_B: tokens read of them.
    """

    def __init__(
        self, words: Words | None, query: str, items: Sequence[str], *, n_query: int, n_item_B: NDArray[np.int64]
    ) -> None:
        self._words, self._query, self._items = words, query, items
        self._n_query, self._n_item_B = n_query, n_item_B
        self._layout: _Layout | None = None

    def prepare(self) -> None:
        """Cut the texts, which can be done while the token weights are computed."""
        if self._words is not None and self._layout is None:
            self._layout = self._laid_out(self._words)

    def weighed(self, rows: Sequence[int], weight_BL: NDArray[np.float32]) -> list[bytes]:
        """Give the JSON members of some pairs' lists of words.

        Args: weight_BL: of the tokens of all pairs.
        """
        self.prepare()
        layout = self._layout
        if layout is None:
            return [b""] * len(rows)
        sum_BL = np.zeros((len(weight_BL), weight_BL.shape[1] + 1))
        np.cumsum(weight_BL, axis=1, out=sum_BL[:, 1:])
        weight_W = sum_BL[layout.row_W, layout.end_W] - sum_BL[layout.row_W, layout.start_W]
        members, first = list(map(add, layout.heads, json_numbers(weight_W))), layout.first
        joined = (b"},".join(members[first[row] : first[row + 1]]) for row in rows)
        return [texts and texts + b"}" for texts in joined]

    def _laid_out(self, words: Words) -> _Layout:
        of_query, of_items = cut(self._query), [cut(text) for text in self._items]
        entries = words.entries([word for of_item in of_items for word in (*of_query, *of_item)])
        n_B = np.fromiter(map(len, of_items), dtype=np.int64, count=len(of_items)) + len(of_query)
        first_B = np.cumsum(n_B) - n_B
        count_W = np.fromiter((n for n, _ in entries), dtype=np.int64, count=len(entries))
        end_W = np.cumsum(count_W)
        end_W = end_W - np.concatenate(([0], end_W))[first_B].repeat(n_B)
        # [CLS] stands before the query, and a [SEP] between the two.
        end_W = end_W + 1 + (np.arange(len(entries)) - first_B.repeat(n_B) >= len(of_query))
        limit_W = (self._n_query + 2 + self._n_item_B).repeat(n_B)
        read_W = (end_W - count_W < limit_W) | (end_W <= limit_W)
        row_W = np.arange(len(of_items)).repeat(n_B)[read_W]
        start_W, end_W = (np.minimum(place_W, limit_W)[read_W] for place_W in (end_W - count_W, end_W))
        heads = [head for _, head in entries]
        for place, word in enumerate(of_query):
            head = _head(word, "query")
            for first in first_B.tolist():
                heads[first + place] = head
        n_read_B = np.bincount(row_W, minlength=len(of_items))
        return _Layout(list(compress(heads, read_W)), row_W, start_W, end_W, [0, *np.cumsum(n_read_B).tolist()])


def cut(text: str) -> list[str]:
    """Give the words of a cleaned text, each with the blanks behind it; put together they are the text."""
    if text.isascii():
        return text.replace(" ", " \0").split("\0") if text else []
    return _WORD.findall(text)


def _head(word: str, side: str) -> bytes:
    return to_json({"text": word, "side": side})[:-1] + b',"weight":'
