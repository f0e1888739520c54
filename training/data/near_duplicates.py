"""Near-duplicate titles by MinHash: which titles of one list nearly repeat a title of another.

Suffixes: N titles, H hash functions.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from training.words import stems

BANDS, ROWS = 16, 5
"""Two titles of Jaccard 0.8 become candidates with probability 1 − (1 − 0.8⁵)¹⁶ > 0.99."""
SIMILAR = 0.8
MAX_TITLES = 20_000
"""Titles looked up at most; more are sampled by hash, so that memory does not grow with the source."""
_PRIME = (1 << 31) - 1
_CHUNK_TITLES = 4096
Words = frozenset[str]


def near_duplicates(known: Iterable[str], titles: Sequence[str]) -> tuple[int, int]:
    """Count the distinct titles whose words have a Jaccard similarity ≥ 0.8 with those of a known title.

    Titles are compared as sets of stems, so case, order, plurals and punctuation do not matter.

    Returns: near-duplicates, and titles looked up.
    """
    wanted = sorted({words for words in map(_words, titles) if words}, key=_order)[:MAX_TITLES]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for n, (_, bands) in enumerate(_with_bands(wanted)):
        for band in bands:
            buckets[band].append(n)
    found: set[int] = set()
    for words, bands in _with_bands(map(_words, known) if wanted else ()):
        candidates = {n for band in bands for n in buckets.get(band, ())} - found
        found |= {n for n in candidates if len(words & wanted[n]) >= SIMILAR * len(words | wanted[n])}
    return len(found), len(wanted)


def _words(title: str) -> Words:
    return frozenset(stems(title))


def _order(words: Words) -> tuple[str, list[str]]:
    listed = sorted(words)
    return hashlib.blake2b(" ".join(listed).encode("utf-8", "replace"), digest_size=8).hexdigest(), listed


def _with_bands(sets: Iterable[Words]) -> Iterator[tuple[Words, list[tuple[int, bytes]]]]:
    """Give each set that is not empty with its bands: parts of its signature, of which similar sets share some."""
    rows = (words for words in sets if words)
    while chunk := list(islice(rows, _CHUNK_TITLES)):
        for words, row in zip(chunk, _signatures(chunk), strict=True):
            yield words, [(b, row[b * ROWS : (b + 1) * ROWS].tobytes()) for b in range(BANDS)]


def _signatures(sets: list[Words]) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    factor_H, shift_H = rng.integers(1, _PRIME, size=(2, BANDS * ROWS), dtype=np.int64)
    hashes = np.array([_word_hash(word) for words in sets for word in words], dtype=np.int64)
    starts_N = np.cumsum([0, *(len(words) for words in sets[:-1])])
    signatures_NH = np.empty((len(sets), BANDS * ROWS), dtype=np.int64)
    for h in range(BANDS * ROWS):
        signatures_NH[:, h] = np.minimum.reduceat((hashes * factor_H[h] + shift_H[h]) % _PRIME, starts_N)
    return signatures_NH


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=4).digest()) % _PRIME
