"""Reading a title of the marketplace back into facts, by its words alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from relevance.pairs import Item
from training.marketplace.catalogue import CATEGORY, DIMS, load_catalogue
from training.marketplace.facts import Facts, facts_of_item

FITS = ("for", "fits")
"""Words before a brand and a series that an accessory goes with."""
FEATURE = "feature"
_FIRST_COUNTS = (CATEGORY, "brand", "series")


@dataclass(frozen=True, slots=True)
class Mention:
    """A value that a title names.

    Args: span: the words, as the title writes them.
    """

    dim: str
    value: str
    span: str


def read_mentions(title: str) -> list[Mention]:
    """Find the values a title names, from left to right, the longest phrase first.

    A brand and a series after "for" or "fits" are what the item goes with. Stuffed words are read like any others.
    """
    phrases, longest = _phrases()
    words = title.split()
    folded = [word.lower() for word in words]
    mentions, at = [], 0
    while at < len(words):
        if folded[at] in FITS and (pair := _brand_and_series(folded[at + 1 : at + 3])):
            mentions.append(Mention("compatible_with", pair, " ".join(words[at + 1 : at + 3])))
            at += 3
            continue
        size = next((n for n in range(longest, 0, -1) if tuple(folded[at : at + n]) in phrases), 0)
        if size:
            dim, value = phrases[tuple(folded[at : at + size])]
            mentions.append(Mention(dim, value, " ".join(words[at : at + size])))
        at += max(size, 1)
    return mentions


def facts_of_title(title: str) -> Facts:
    """Give what a title tells of an item.

    The category is that of most features, which are never untrue, and without any that of the first name. Of brands and
    series the first counts, because one named later is mostly there to be found by it.
    """
    mentions = read_mentions(title)
    facts: dict[str, tuple[str, ...]] = {
        dim: tuple(dict.fromkeys(m.value for m in mentions if m.dim == dim)) for dim in (CATEGORY, *DIMS)
    }
    features = Counter(m.value for m in mentions if m.dim == FEATURE)
    if features:
        facts[CATEGORY] = (features.most_common(1)[0][0],)
    return {dim: values[:1] if dim in _FIRST_COUNTS else values for dim, values in facts.items()}


def facts_of_page(item: Item) -> Facts:
    """Give what a careful reader of title and record believes: the record, but the title where they contradict."""
    record, told = facts_of_item(item), facts_of_title(item.title)
    return {
        dim: told[dim] if told[dim] and not set(told[dim]) & set(record.get(dim, ())) else record.get(dim, ())
        for dim in (CATEGORY, *DIMS)
    }


@cache
def _series_names() -> frozenset[str]:
    return frozenset(name for names in load_catalogue().series.values() for name in names)


def _brand_and_series(words: list[str]) -> str:
    known = len(words) == 2 and words[0] in load_catalogue().series and words[1] in _series_names()
    return " ".join(words) if known else ""


_Phrases = dict[tuple[str, ...], tuple[str, str]]


@cache
def _phrases() -> tuple[_Phrases, int]:
    catalogue = load_catalogue()
    named = [(dim, value, form) for dim, forms in catalogue.forms.items() for value in forms for form in forms[value]]
    named += [("brand", name, name) for name in catalogue.brands] + [("series", name, name) for name in _series_names()]
    named += [(FEATURE, c.name, feature) for c in catalogue.categories.values() for feature in c.features]
    phrases = {tuple(form.split()): (dim, value) for dim, value, form in named}
    return phrases, max(map(len, phrases))
