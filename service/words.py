"""Words of the texts that a model read, each with its share of the token weights, as JSON.

A word ends at a blank, or where ideographs begin or end. A BERT tokenizer goes word by word there, so a word has as
many tokens alone as in its text, and what is known of a word serves every text that has it.
Suffixes: B pairs, L tokens, W words of all items, one item's after the other's, X and Y bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from relevance.tokenization import PairTokenizer
from service.json_numbers import ROOM, WIDTH, json_digits

_IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
"""What BERT's normaliser puts blanks around, block by block as its table has them."""
_WORD = re.compile(f"[{_IDEOGRAPHS}]+ *|[^ {_IDEOGRAPHS}]+ *")
_MOST_KNOWN, _LONGEST_KNOWN = 20_000, 64
"""Words that are remembered, and characters that such a word may have."""


_NUMBER = np.arange(WIDTH)
_WEIGHT = ROOM + b"},"


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
        """Give each word's tokens and its JSON as a word of an item, with room for the weight."""
        known = self._known
        try:
            return list(map(known.__getitem__, words))
        except KeyError:
            pass
        here = {word: known[word] for word in words if word in known}
        new = list(dict.fromkeys(word for word in words if word not in here))
        counts = map(len, self._tokenizer.encode_texts(new))
        here.update((word, (n, _member(word, "item"))) for word, n in zip(new, counts, strict=True))
        if len(known) > _MOST_KNOWN:
            self._known = known = {}
        known.update((word, here[word]) for word in new[:_MOST_KNOWN] if len(word) <= _LONGEST_KNOWN)
        return [here[word] for word in words]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The words that were read of some pairs as JSON, with room for the weights.

    Args: query_X: bytes of the query's words; query_at, query_start, query_end: of each word, the place of its number,
        its first token in a pair and the one behind its last; items_Y: bytes of all items' words, one item's after the
        other's; at_W, row_W, start_W, end_W: likewise of those, and their pair; first: place of each item's first byte,
        and of all.
    """

    query_X: NDArray[np.uint8]
    query_at: NDArray[np.int64]
    query_start: NDArray[np.int64]
    query_end: NDArray[np.int64]
    items_Y: NDArray[np.uint8]
    at_W: NDArray[np.int64]
    row_W: NDArray[np.int64]
    start_W: NDArray[np.int64]
    end_W: NDArray[np.int64]
    first: list[int]


class Reading:
    """The words of the pairs of one query; any thread may call any method, and two at once only do the same work twice.

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
        query_BX = np.repeat(layout.query_X[None], len(weight_BL), axis=0)
        query_BX[:, layout.query_at[:, None] + _NUMBER] = json_digits(
            sum_BL[:, layout.query_end] - sum_BL[:, layout.query_start]
        )
        items_Y = layout.items_Y.copy()
        items_Y[layout.at_W[:, None] + _NUMBER] = json_digits(
            sum_BL[layout.row_W, layout.end_W] - sum_BL[layout.row_W, layout.start_W]
        )
        query, items, first, n = query_BX.tobytes(), items_Y.tobytes(), layout.first, len(layout.query_X)
        return [(query[n * row : n * row + n] + items[first[row] : first[row + 1]])[:-1] for row in rows]

    def _laid_out(self, words: Words) -> _Layout:
        """Put the words that were read in a row; [CLS] stands before the query, and a [SEP] between the two."""
        of_query, of_items = cut(self._query), [cut(text) for text in self._items]
        n_query_W = np.fromiter((n for n, _ in words.entries(of_query)), dtype=np.int64, count=len(of_query))
        query = [_member(word, "query") for word in of_query]
        query_end = np.minimum(np.cumsum(n_query_W), self._n_query) + 1
        entries = words.entries(list(chain.from_iterable(of_items)))
        n_B = np.fromiter(map(len, of_items), dtype=np.int64, count=len(of_items))
        row_W = np.arange(len(of_items)).repeat(n_B)
        n_W = np.fromiter((n for n, _ in entries), dtype=np.int64, count=len(entries))
        end_W = np.cumsum(n_W)
        start_W = end_W - n_W
        before_B = np.concatenate(([0], end_W))[np.cumsum(n_B) - n_B]
        start_W, end_W = start_W - before_B[row_W], end_W - before_B[row_W]
        limit_W = self._n_item_B[row_W]
        read_W = (start_W < limit_W) | (end_W <= limit_W)
        members = list(compress((member for _, member in entries), read_W))
        row_W, limit_W = row_W[read_W], limit_W[read_W]
        start_W, end_W = (np.minimum(place_W[read_W], limit_W) + self._n_query + 2 for place_W in (start_W, end_W))
        length_W = _lengths(members)
        byte_W = np.cumsum(length_W)
        n_read_B = np.bincount(row_W, minlength=len(of_items))
        return _Layout(
            query_X=np.frombuffer(b"".join(query), dtype=np.uint8),
            query_at=np.cumsum(_lengths(query)) - len(_WEIGHT),
            query_start=np.concatenate(([1], query_end))[:-1],
            query_end=query_end,
            items_Y=np.frombuffer(b"".join(members), dtype=np.uint8),
            at_W=byte_W - len(_WEIGHT),
            row_W=row_W,
            start_W=start_W,
            end_W=end_W,
            first=np.concatenate(([0], byte_W))[np.concatenate(([0], np.cumsum(n_read_B)))].tolist(),
        )


def cut(text: str) -> list[str]:
    """Give the words of a cleaned text, each with the blanks behind it; put together they are the text."""
    if text.isascii():
        return text.replace(" ", " \0").split("\0") if text else []
    return _WORD.findall(text)


def _member(word: str, side: str) -> bytes:
    """Give the JSON of a word with room for its weight, and a comma behind it."""
    return to_json({"text": word, "side": side})[:-1] + b',"weight":' + _WEIGHT


def _lengths(texts: list[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
