"""Near-duplicate titles while they are written: what `training.data.near_duplicates` would find, found at once."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from training.data.near_duplicates import SIMILAR
from training.words import stems

Words = frozenset[str]


class TitleIndex:
    """Titles seen so far, looked up exactly.

    Two sets whose Jaccard similarity is ≥ s share one of the first |A| − ⌈s |A|⌉ + 1 words of each in any fixed order
    (prefix filtering: Chaudhuri, Ganti & Kaushik 2006), so only titles with such a word in common are compared. The
    order is by frequency in the titles added first, rare words before common ones.
    """

    def __init__(self) -> None:
        self._count: Counter[str] | None = None
        self._by_word: dict[str, list[Words]] = defaultdict(list)

    def add(self, titles: Iterable[str]) -> None:
        """Remember titles."""
        sets = sorted({frozenset(stems(title)) for title in titles}, key=sorted)
        if self._count is None:
            self._count = Counter(word for words in sets for word in words)
        for words in sets:
            for word in self._prefix(words):
                self._by_word[word].append(words)

    def nearly_has(self, title: str) -> bool:
        """Say whether a remembered title has nearly the same words: Jaccard similarity ≥ 0.8."""
        words = frozenset(stems(title))
        return any(
            len(words & other) >= SIMILAR * len(words | other)
            for word in self._prefix(words)
            for other in self._by_word.get(word, ())
        )

    def _prefix(self, words: Words) -> list[str]:
        count = self._count or Counter()
        listed = sorted(words, key=lambda word: (count[word], word))
        return listed[: len(words) - math.ceil(SIMILAR * len(words)) + 1]
