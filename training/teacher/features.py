"""Evidence of a pair for the feature-based teacher: sentence cosines, token similarities and word overlap.

It reads item fields that the student never sees (bullets, description, category). Suffixes: N pairs, F features,
T tokens, D width.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz import fuzz
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from relevance.pairs import Item, Pair
from training.words import normalise_query, stems

FEATURES = (
    "cosine", "coverage", "jaccard", "trigrams", "token_set", "idf_coverage", "rarest_missing", "last_word",
    "first_word", "token_mean", "token_least", "token_median", "bullets_cosine", "category_cosine", "full_coverage",
    "full_trigrams", "full_idf_coverage", "full_rarest_missing", "brand", "color", "numbers", "number_count",
    "negated", "query_words", "title_words", "query_idf",
)  # fmt: skip
TAUGHT = (
    "cosine", "coverage", "trigrams", "token_set", "idf_coverage", "token_mean", "token_least", "bullets_cosine",
    "full_idf_coverage", "category_cosine",
)  # fmt: skip
"""The features that the student's training-only regression learns to give."""
OF_TITLE = tuple(
    name
    for name in FEATURES
    if not name.startswith("full_") and name not in {"bullets_cosine", "category_cosine", "brand", "color"}
)
"""The features of query and title alone."""
_STOP = frozenset(["a", "an", "the", "for", "of", "and", "in", "on", "to", "with", "by", "or", "de", "para", "con"])
_NEGATIONS = frozenset(["without", "no", "not", "non", "free", "except", "sin"])
_NUMBER = re.compile(r"\d+")
_FULL_CHARS = 600


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Unit sentence vector (D,) and unit token vectors (T, D), float16."""

    sentence_D: NDArray[np.float16]
    tokens_TD: NDArray[np.float16]


class TokenEncoder:
    """A frozen sentence encoder with a memory; each distinct text is encoded once."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._known: dict[str, EncodedText] = {}

    def encode(self, texts: Iterable[str], *, batch_size: int = 128) -> None:
        """Encode and remember texts, longest batches last, with progress."""
        new = sorted(set(texts) - self._known.keys(), key=lambda text: (len(text), text))
        for start in tqdm(range(0, len(new), batch_size), desc="encode", unit="batch"):
            batch = new[start : start + batch_size]
            features = self._model.preprocess(batch)
            inputs = {name: v.to(self._model.device) for name, v in features.items() if isinstance(v, torch.Tensor)}
            with torch.inference_mode(), _fast_arithmetic():
                outputs = self._model({**features, **inputs})
            sentences = (
                torch.nn.functional.normalize(outputs["sentence_embedding"].float(), dim=-1).half().cpu().numpy()
            )
            tokens = torch.nn.functional.normalize(outputs["token_embeddings"].float(), dim=-1).half().cpu().numpy()
            counts = inputs["attention_mask"].sum(dim=1).tolist()
            for text, sentence, token, count in zip(batch, sentences, tokens, counts, strict=True):
                self._known[text] = EncodedText(sentence, token[1 : max(count - 1, 2)].copy())

    def __getitem__(self, text: str) -> EncodedText:
        return self._known[text]

    def cosine(self, one: str, other: str) -> float:
        """Give the cosine of two encoded texts, nan if one of them is empty."""
        if not one or not other:
            return math.nan
        return float(self[one].sentence_D.astype(np.float32) @ self[other].sentence_D.astype(np.float32))


class PairFeatures:
    """Features of pairs over one encoder and the document frequencies of a collection of titles."""

    def __init__(self, encoder: TokenEncoder, titles: Sequence[str]) -> None:
        self._encoder = encoder
        seen = Counter(word for title in titles for word in set(_words(title)))
        self._idf = {word: math.log((len(titles) + 1) / (count + 0.5)) for word, count in seen.items()}
        self._idf_of_new = math.log(len(titles) + 1)

    def of(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Give the features of pairs in the order of `FEATURES`, float32 of shape (N, F), nan where a field lacks."""
        self._encoder.encode(text for pair in pairs for text in texts_of(pair) if text)
        rows = [self._of_pair(pair) for pair in tqdm(pairs, desc="features", unit="pair")]
        return np.asarray(rows, dtype=np.float32).reshape(len(pairs), len(FEATURES))

    def _of_pair(self, pair: Pair) -> list[float]:
        query, item = pair.query.text, pair.item
        title, bullets, category = item.title, _bullets(item), _category(item)
        full = " ".join([title, item.brand or "", item.color or "", bullets, _description(item)])
        words, title_words = _words(query), _words(title)
        in_title, in_full = self._overlap(query, title), self._overlap(query, full)
        query_vectors = self._encoder[query].tokens_TD.astype(np.float32)
        best_T = (query_vectors @ self._encoder[title].tokens_TD.astype(np.float32).T).max(axis=1)
        brand, color = set(_words(item.brand or "")), set(_words(item.color or ""))
        numbers, title_numbers = set(_NUMBER.findall(query)), set(_NUMBER.findall(title))
        return [
            self._encoder.cosine(query, title),
            *in_title,
            float(best_T.mean()),
            float(best_T.min()),
            float(np.median(best_T)),
            self._encoder.cosine(query, bullets),
            self._encoder.cosine(query, category),
            in_full[0],
            in_full[2],
            in_full[4],
            in_full[5],
            len(brand & set(words)) / len(brand) if brand else math.nan,
            float(bool(color & set(words))),
            len(numbers & title_numbers) / len(numbers) if numbers else math.nan,
            float(len(numbers)),
            float(any(word in _NEGATIONS for word in normalise_query(query).split())),
            float(len(words)),
            float(len(title_words)),
            sum(self._rarity(word) for word in words),
        ]

    def _overlap(self, query: str, text: str) -> tuple[float, ...]:
        words = [w for w in _words(query) if w not in _STOP] or list(_words(query)) or [""]
        there = set(_words(text))
        weights = [self._rarity(word) for word in words]
        found = [word in there for word in words]
        grams = _trigrams(query)
        return (
            sum(found) / len(words),
            len(set(words) & there) / max(1, len(set(words) | there)),
            len(grams & _trigrams(text)) / max(1, len(grams)),
            fuzz.token_set_ratio(" ".join(words), " ".join(_words(text))) / 100,
            sum(w for w, f in zip(weights, found, strict=True) if f) / max(1e-6, sum(weights)),
            max((w for w, f in zip(weights, found, strict=True) if not f), default=0.0),
            float(found[-1]),
            float(found[0]),
        )

    def _rarity(self, word: str) -> float:
        return self._idf.get(word, self._idf_of_new)


def texts_of(pair: Pair) -> tuple[str, str, str, str]:
    """Give the texts of a pair that are encoded: query, title, bullets, the end of the category path; "" if missing."""
    return pair.query.text, pair.item.title, _bullets(pair.item), _category(pair.item)


def _bullets(item: Item) -> str:
    return item.attributes.get("bullets", "")[:_FULL_CHARS]


def _description(item: Item) -> str:
    return item.attributes.get("description", "")[:_FULL_CHARS]


def _category(item: Item) -> str:
    return " ".join(item.attributes.get("category", "").replace(" > ", ", ").split(", ")[-3:])


@cache
def _words(text: str) -> tuple[str, ...]:
    return tuple(stems(text))


@cache
def _trigrams(text: str) -> frozenset[str]:
    padded = f" {' '.join(_words(text))} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def _fast_arithmetic() -> AbstractContextManager[object]:
    if torch.cuda.is_available():
        return torch.autocast("cuda", torch.bfloat16)
    return torch.autocast("cpu", torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else nullcontext()
