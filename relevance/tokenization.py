"""Pair tokenisation: the query once, each item once, `[CLS] query [SEP] item [SEP]` assembled here.

Suffixes: B pairs, L tokens.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from relevance.errors import BundleError, QueryTooLongError

TokenIds = NDArray[np.int32]
N_SPECIAL = 3
"""Special tokens of a pair: [CLS], [SEP], [SEP]."""


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One padded batch of B pairs and L tokens; each array is int64 of shape (B, L)."""

    input_ids_BL: NDArray[np.int64]
    attention_mask_BL: NDArray[np.int64]
    token_type_ids_BL: NDArray[np.int64]

    def inputs(self) -> dict[str, NDArray[np.int64]]:
        """Give the arrays under the names of the student's graph inputs."""
        return {
            "input_ids": self.input_ids_BL,
            "attention_mask": self.attention_mask_BL,
            "token_type_ids": self.token_type_ids_BL,
        }


class PairTokenizer:
    """Turns texts into token ids and ids into padded batches; the same code trains and serves.

    Token for token equal to a Hugging Face BERT tokenizer called on the pair with `truncation="only_second"`.
    Thread-safe as long as `item_cache` is.

    Args: tokenizer: a BERT-style tokenizer with [CLS], [SEP] and [PAD]; max_query_tokens: longer queries are refused,
        never cut; max_pair_tokens: items are cut so that a pair has at most this many tokens, specials included;
        item_cache: item text → token ids, for instance a bounded LRU map; None caches nothing.
    Raises: BundleError: if a special token is missing or the limits leave no room for an item.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_query_tokens: int,
        max_pair_tokens: int,
        item_cache: MutableMapping[str, TokenIds] | None = None,
    ) -> None:
        if max_query_tokens + N_SPECIAL >= max_pair_tokens or max_query_tokens < 1:
            raise BundleError(
                f"expected 1 ≤ max_query_tokens < max_pair_tokens - {N_SPECIAL}, "
                f"found {max_query_tokens} and {max_pair_tokens}"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_query_tokens = max_query_tokens
        self.max_pair_tokens = max_pair_tokens
        self.item_cache = item_cache
        self.cls_id, self.sep_id, self.pad_id = (self.token_id(name) for name in ("[CLS]", "[SEP]", "[PAD]"))

    @classmethod
    def from_bytes(cls, data: bytes, *, max_query_tokens: int, max_pair_tokens: int) -> PairTokenizer:
        """Read the bytes of a `tokenizer.json`.

        Raises: BundleError: if the bytes are not a tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:
            raise BundleError(f"tokenizer.json: expected a tokenizer: {error}") from error
        return cls(tokenizer, max_query_tokens=max_query_tokens, max_pair_tokens=max_pair_tokens)

    def to_bytes(self) -> bytes:
        """Give the `tokenizer.json` of this tokenizer, without padding or truncation settings."""
        return bytes(self._tokenizer.to_str().encode())

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode_query(self, text: str) -> TokenIds:
        """Give the ids of a cleaned query, without special tokens.

        Raises: QueryTooLongError: if it has more than `max_query_tokens` tokens.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > self.max_query_tokens:
            raise QueryTooLongError(len(ids), self.max_query_tokens)
        return np.asarray(ids, dtype=np.int32)

    def encode_items(self, texts: Sequence[str]) -> list[TokenIds]:
        """Give the ids of cleaned item texts, without special tokens, cut one token past what any pair can hold."""
        cache = self.item_cache
        if cache is None:
            return self._encode_new(texts)
        found = [cache.get(text) for text in texts]
        missing = list({text: None for text, ids in zip(texts, found, strict=True) if ids is None})
        if not missing:
            return [ids for ids in found if ids is not None]
        new = dict(zip(missing, self._encode_new(missing), strict=True))
        cache.update(new)
        return [new[text] if ids is None else ids for text, ids in zip(texts, found, strict=True)]

    def encode_texts(self, texts: Sequence[str]) -> list[TokenIds]:
        """Give the ids of any texts, whole and without special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, dtype=np.int32) for e in encodings]

    def item_budget(self, query_ids: TokenIds) -> int:
        """Give the number of item tokens that fit beside this query."""
        return self.max_pair_tokens - N_SPECIAL - len(query_ids)

    def collate(self, queries: Sequence[TokenIds], items: Sequence[TokenIds], *, pad_to: int = 0) -> PairBatch:
        """Assemble `[CLS] query [SEP] item [SEP]` and pad to the longest pair, or to `pad_to` if that is longer.

        Args: queries, items: B arrays each, as `encode_query` and `encode_items` give them.
        Returns: a batch; token types are 0 up to the first [SEP] and 1 from the item to the last [SEP].
        """
        n = len(items)
        n_query_B1 = np.fromiter((len(q) for q in queries), dtype=np.int64, count=n)[:, None]
        n_item_B1 = np.fromiter((len(i) for i in items), dtype=np.int64, count=n)[:, None]
        n_item_B1 = np.minimum(n_item_B1, self.max_pair_tokens - N_SPECIAL - n_query_B1)
        item_start_B1 = n_query_B1 + 2
        item_end_B1 = item_start_B1 + n_item_B1
        position_L = np.arange(max(int(item_end_B1.max(initial=0)) + 1, pad_to))
        row = np.arange(n)
        input_ids_BL = np.full((n, len(position_L)), self.pad_id, dtype=np.int64)
        if n:
            input_ids_BL[:, 0] = self.cls_id
            input_ids_BL[(position_L >= 1) & (position_L <= n_query_B1)] = np.concatenate(queries)
            input_ids_BL[row, n_query_B1[:, 0] + 1] = self.sep_id
            kept = [ids[:k] for ids, k in zip(items, n_item_B1[:, 0], strict=True)]
            input_ids_BL[(position_L >= item_start_B1) & (position_L < item_end_B1)] = np.concatenate(kept)
            input_ids_BL[row, item_end_B1[:, 0]] = self.sep_id
        attended_BL = position_L <= item_end_B1
        return PairBatch(
            input_ids_BL=input_ids_BL,
            attention_mask_BL=attended_BL.astype(np.int64),
            token_type_ids_BL=(attended_BL & (position_L >= item_start_B1)).astype(np.int64),
        )

    def _encode_new(self, texts: Sequence[str]) -> list[TokenIds]:
        most = self.max_pair_tokens - N_SPECIAL + 1
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids[:most], dtype=np.int32) for e in encodings]

    def token_id(self, token: str) -> int:
        """Give the id of a special token.

        Raises: BundleError: if the vocabulary has none of this name.
        """
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise BundleError(f"tokenizer: expected the special token {token}, found none (a BERT-style one is needed)")
        return int(token_id)
