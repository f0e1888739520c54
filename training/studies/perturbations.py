"""Perturbations of a pair: pure functions of the pair and a generator, None where one does not apply.

Some keep what is true of the pair (a typo, a stuffed title), so its label still holds. The others make it false
(another number, brand or unit, a negation): an Exact pair should score lower. Words: perturbations.toml. Source: ours.
"""

from __future__ import annotations

import re
import tomllib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from relevance.pairs import Pair
from training.words import is_cjk, stems

Perturbation = Callable[[Pair, np.random.Generator], Pair | None]
Truth = Literal["kept", "falls"]

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    key: "".join(row[j] for j in (i - 1, i + 1) if 0 <= j < len(row)) for row in _ROWS for i, key in enumerate(row)
}
"""Keys beside each key of a QWERTY keyboard."""
_WORD = re.compile(r"(?<!\w)[^\W\d_]{4,}(?!\w)")
_CONTENT = re.compile(r"(?<![\w'’-])[^\W\d_]{3,}(?![\w'’-])")
_INTEGER = re.compile(r"(?<![\w.,])\d{1,9}(?![\d.,])")
_STUFFED = 6
_SWITCHED = 2
_LEAST_WORDS = 8
_LEAST_CHARACTERS = 30


@dataclass(frozen=True, slots=True)
class Suite:
    """One perturbation and what it does to the truth.

    Args: truth: `kept`, the label still holds; `falls`, an Exact pair is no longer Exact.
    """

    name: str
    truth: Truth
    perturb: Perturbation


def suites(brands: Sequence[str]) -> tuple[Suite, ...]:
    """Give all suites.

    Args: brands: what a brand is swapped for.
    """
    return (
        Suite("typo: neighbouring key", "kept", neighbour_typo),
        Suite("typo: swapped letters", "kept", swapped_letters),
        Suite("title stuffed with sales words", "kept", stuffed_title),
        Suite("title stuffed with the query", "kept", title_with_query),
        Suite("paraphrase", "kept", paraphrase),
        Suite("code-switching", "kept", code_switching),
        Suite("title cut in half", "kept", truncated_title),
        Suite("brand of the title swapped, not asked for", "kept", partial(title_brand_swap, brands=brands)),
        Suite("number swapped", "falls", number_swap),
        Suite("unit swapped", "falls", unit_swap),
        Suite("brand asked for swapped", "falls", partial(query_brand_swap, brands=brands)),
        Suite("negation", "falls", negation),
    )


def perturbed(suite: Suite, pair: Pair, seed: int = 0) -> Pair | None:
    """Apply a suite to a pair; the outcome depends on suite, pair and seed alone."""
    keys = [zlib.crc32(text.encode("utf-8", "replace")) for text in (suite.name, pair.pair_id)]
    return suite.perturb(pair, np.random.default_rng([seed, *keys]))


def language(locale: str | None) -> str:
    """Give the language whose words a locale's pairs are perturbed with: es, ja or, for all others, en."""
    return {"es": "es", "jp": "ja", "ja": "ja", "mx": "es"}.get((locale or "").lower()[:2], "en")


def neighbour_typo(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Hit a neighbouring key once, after the first letter of a word of at least four letters."""
    text = pair.query.text
    places = [m.start() + i for m in _WORD.finditer(text) for i in range(1, len(m[0])) if m[0][i].lower() in NEIGHBOURS]
    if not places:
        return None
    place = places[rng.integers(len(places))]
    keys = NEIGHBOURS[text[place].lower()]
    return _with_query(pair, text[:place] + keys[rng.integers(len(keys))] + text[place + 1 :])


def swapped_letters(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Swap two letters that stand side by side, after the first of a word of at least four Latin letters."""
    text = pair.query.text
    places = [
        m.start() + i
        for m in _WORD.finditer(text)
        if not is_cjk(m[0])
        for i in range(1, len(m[0]) - 1)
        if m[0][i] != m[0][i + 1]
    ]
    if not places:
        return None
    place = places[rng.integers(len(places))]
    return _with_query(pair, text[:place] + text[place + 1] + text[place] + text[place + 2 :])


def stuffed_title(pair: Pair, rng: np.random.Generator) -> Pair:
    """Append sales words to the title."""
    words = _tables()["stuffing"][language(pair.query.locale)]
    chosen = rng.choice(len(words), size=_STUFFED, replace=False)
    return _with_title(pair, f"{pair.item.title} {' '.join(words[i] for i in chosen)}")


def title_with_query(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Append the query to a title that does not hold it: a seller who stuffs for one query. Draws nothing."""
    del rng
    if pair.query.text.casefold() in pair.item.title.casefold():
        return None
    return _with_title(pair, f"{pair.item.title} {pair.query.text}")


def paraphrase(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Replace one phrase of the query by another that means the same."""
    text = pair.query.text
    options = [
        (found, new)
        for row in _tables()["synonyms"][language(pair.query.locale)]
        for old in row
        if (found := _find(old, text))
        for new in row
        if not _find(new, text)
    ]
    if not options:
        return None
    found, new = options[rng.integers(len(options))]
    return _with_query(pair, _replaced(text, found, new))


def code_switching(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Replace up to two words of the query by words of another language."""
    text, switched = pair.query.text, 0
    table = _tables()["code_switching"][language(pair.query.locale)]
    for i in rng.permutation(len(table)):
        old, new = table[i]
        found = _find(old, text)
        if found and switched < _SWITCHED:
            text, switched = _replaced(text, found, new), switched + 1
    return _with_query(pair, text) if switched else None


def truncated_title(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Keep the first half of a long title: of its words, or of its characters where it has few words. Draws nothing."""
    del rng
    title = pair.item.title
    words = title.split()
    if len(words) >= _LEAST_WORDS:
        return _with_title(pair, " ".join(words[: len(words) // 2]))
    if language(pair.query.locale) == "ja" and len(title) >= _LEAST_CHARACTERS:
        return _with_title(pair, title[: len(title) // 2])
    return None


def title_brand_swap(pair: Pair, rng: np.random.Generator, *, brands: Sequence[str]) -> Pair | None:
    """Swap the brand of title and record where the query has no word of it: a counterfactual that should not matter."""
    item = pair.item
    found = _find(item.brand or "", item.title)
    new = _other_brand(pair, rng, brands)
    if not found or not new or set(stems(item.brand or "")) & set(stems(pair.query.text)):
        return None
    return Pair(pair.query, replace(item, title=_replaced(item.title, found, new), brand=new))


def query_brand_swap(pair: Pair, rng: np.random.Generator, *, brands: Sequence[str]) -> Pair | None:
    """Ask for another brand where the query names the item's."""
    found = _find(pair.item.brand or "", pair.query.text)
    new = _other_brand(pair, rng, brands)
    return _with_query(pair, _replaced(pair.query.text, found, new)) if found and new else None


def number_swap(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Change a whole number of the query that the title holds too into one that the title does not hold."""
    text, in_title = pair.query.text, set(_INTEGER.findall(pair.item.title))
    options = [
        (found, str(new))
        for found in _INTEGER.finditer(text)
        if found[0] in in_title
        for new in (int(found[0]) + 1, int(found[0]) + 2, 2 * int(found[0]))
        if str(new) not in in_title and new != int(found[0])
    ]
    if not options:
        return None
    found, new = options[rng.integers(len(options))]
    return _with_query(pair, _replaced(text, found, new))


def unit_swap(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Change the unit behind a number of the query into another of its kind, where the title holds that number."""
    text, title = pair.query.text, pair.item.title
    options = [
        (found, new)
        for kind in _tables()["units"]
        for spellings in kind
        for unit in spellings
        for found in re.finditer(rf"(?<=\d){unit}(?!\w)|(?<=\d[ -]){unit}(?!\w)", text, re.IGNORECASE)
        if re.search(rf"(?<!\d){re.escape(_number_before(text, found.start()))}(?!\d)", title)
        for new, *_ in kind
        if new != spellings[0]
    ]
    if not options:
        return None
    found, new = options[rng.integers(len(options))]
    return _with_query(pair, _replaced(text, found, new))


def negation(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Ask for the item without a word that query and title share, other than the query's head.

    The head is the last word in English and Japanese, the first in Spanish.
    """
    text, spoken = pair.query.text, language(pair.query.locale)
    stopwords = set(_tables()["stopwords"])
    words = list(_CONTENT.finditer(text))
    if len(text.split()) < 2 or any(word in text.lower().split() for word in ("without", "not", "no", "sin")):
        return None
    others = words[1:] if spoken == "es" else words[:-1]
    options = [found for found in others if found[0].lower() not in stopwords and _find(found[0], pair.item.title)]
    if not options:
        return None
    found = options[rng.integers(len(options))]
    rest = " ".join((text[: found.start()] + text[found.end() :]).split())
    return _with_query(pair, _tables()["negation"][spoken].format(rest=rest, word=found[0]))


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "perturbations.toml").read_text(encoding="utf-8"))


def _find(phrase: str, text: str) -> re.Match[str] | None:
    """Find a phrase as whole words, of Japanese anywhere; None for an empty one."""
    if not phrase.strip():
        return None
    pattern = re.escape(phrase)
    if not is_cjk(phrase):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE)


def _replaced(text: str, found: re.Match[str], new: str) -> str:
    return text[: found.start()] + new + text[found.end() :]


def _number_before(text: str, end: int) -> str:
    return re.split(r"[^\d.,]", text[:end].rstrip(" -"))[-1]


def _other_brand(pair: Pair, rng: np.random.Generator, brands: Sequence[str]) -> str:
    """Give a brand that neither query nor title nor record names, "" where there is none."""
    named = f"{pair.query.text} {pair.item.title} {pair.item.brand or ''}".casefold()
    options = [brand for brand in brands if brand.casefold() not in named]
    return options[rng.integers(len(options))] if options else ""


def _with_query(pair: Pair, text: str) -> Pair:
    return Pair(replace(pair.query, text=text), pair.item)


def _with_title(pair: Pair, title: str) -> Pair:
    return Pair(pair.query, replace(pair.item, title=title))
