"""The annotator's words, read from lexicon.toml: which surface form stands for which colour, audience or unit."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from training.words import is_cjk, stem


@dataclass(frozen=True, slots=True)
class Lexicon:
    """What the annotator knows of three languages.

    Args: colours, audiences: surface form → canonical name; accessories: stems and Japanese words;
        accessory_categories: stems; the other sets hold lower-case surface forms; measure: number and unit in a text.
    """

    stopwords: frozenset[str]
    purpose: frozenset[str]
    joiners: frozenset[str]
    negations: frozenset[str]
    suffix_negations: tuple[str, ...]
    free_words: frozenset[str]
    colours: Mapping[str, str]
    audiences: Mapping[str, str]
    accessories: frozenset[str]
    accessory_categories: frozenset[str]
    units: Mapping[str, str]
    measure: re.Pattern[str]

    def named(self, table: Mapping[str, str], found: Iterable[str]) -> tuple[str, ...]:
        """Give the canonical names of chunks, in order, each once; Japanese runs are searched for the words inside."""
        names: dict[str, None] = {}
        for chunk in found:
            if chunk in table:
                names[table[chunk]] = None
            elif is_cjk(chunk):
                names |= dict.fromkeys(name for surface, name in table.items() if is_cjk(surface) and surface in chunk)
        return tuple(names)

    def accessory_words(self, found: Iterable[str]) -> tuple[str, ...]:
        """Give the chunks that name an accessory, in order, each once."""
        words: dict[str, None] = {}
        for chunk in found:
            if stem(chunk) in self.accessories:
                words[chunk] = None
            elif is_cjk(chunk):
                inside = (word for word in self.accessories if is_cjk(word) and word in chunk)
                words |= dict.fromkeys(sorted(inside, key=lambda word: (chunk.index(word), word)))
        return tuple(words)

    def measures(self, text: str) -> frozenset[tuple[str, str]]:
        """Give (number, unit) of every measure in a lower-case text."""
        return frozenset(
            (number.replace(",", ".").removesuffix(".0"), self.units[unit])
            for number, unit in self.measure.findall(text)
        )


@cache
def load_lexicon() -> Lexicon:
    """Read lexicon.toml, once."""
    data = tomllib.loads(Path(__file__).with_name("lexicon.toml").read_text(encoding="utf-8"))
    units = _by_surface(data["units"])
    alternatives = "|".join(re.escape(u) for u in sorted(units, key=len, reverse=True))
    return Lexicon(
        stopwords=frozenset(data["stopwords"]),
        purpose=frozenset(data["purpose"]),
        joiners=frozenset(data["joiners"]),
        negations=frozenset(data["negations"]),
        suffix_negations=tuple(data["suffix_negations"]),
        free_words=frozenset(data["free_words"]),
        colours=_by_surface(data["colours"]),
        audiences=_by_surface(data["audiences"]),
        accessories=frozenset(stem(word) for word in data["accessories"]["words"]),
        accessory_categories=frozenset(stem(word) for word in data["accessories"]["categories"]),
        units=units,
        # "5 in 1" is no measure.
        measure=re.compile(rf"(\d+(?:[.,]\d+)?)[\s-]?({alternatives})(?![a-z])(?!\s+\d)"),
    )


def _by_surface(table: Mapping[str, list[str]]) -> dict[str, str]:
    return {surface: name for name, surfaces in table.items() for surface in surfaces}
