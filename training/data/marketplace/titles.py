"""Titles of the marketplace: each attribute is told or not, in one of its forms, and some words are not true at all."""

from __future__ import annotations

from random import Random

from training.data.marketplace.items import Pool
from training.marketplace.catalogue import CATEGORY, Catalogue
from training.marketplace.facts import Facts

MIN_WORDS, MAX_WORDS = 6, 16
_POPULAR = 8
"""So many of the first brands of a pool are put into other brands' titles."""
_TOLD = ("colour", "material", "size", "use_case")


def write_title(rng: Random, catalogue: Catalogue, facts: Facts, pool: Pool) -> str:
    """Write a title of 6 to 16 words from an item's true facts.

    The features of its category are always true and always partly told; words put in to be found by come last.
    """
    kind = catalogue.categories[facts[CATEGORY][0]]
    told = {dim for dim in facts if rng.random() < catalogue.reveal[dim]}
    named = [facts[dim][0] for dim in ("brand", "series") if dim in told]
    middle = [rng.choice(catalogue.written(dim, rng.choice(facts[dim]))) for dim in _TOLD if dim in told]
    if CATEGORY in told:
        middle.append(rng.choice((kind.name, kind.name, kind.synonym)))
    features = rng.sample(kind.features, rng.randint(1, 2) + (CATEGORY not in told))
    rng.shuffle(middle)
    parts = [*named, *middle, features.pop()]
    if "compatible_with" in told:
        parts.append(f"{rng.choice(('for', 'fits'))} {facts['compatible_with'][0]}")
    parts += features
    if rng.random() < catalogue.reveal["stuffing"]:
        parts.append(_stuffing(rng, catalogue, facts, pool))
    while len(" ".join(parts).split()) < MIN_WORDS:
        parts.append(rng.choice([phrase for phrase in catalogue.stuffed if phrase not in parts]))
    while len(" ".join(parts).split()) > MAX_WORDS:
        parts.pop()
    return " ".join(word[:1].upper() + word[1:] for word in " ".join(parts).split())


def _stuffing(rng: Random, catalogue: Catalogue, facts: Facts, pool: Pool) -> str:
    """Give words that are not true of the item: another category, another colour, a popular brand, or praise."""
    kind = rng.choice(("category", "colour", "brand", "praise"))
    if kind == "category":
        host = catalogue.categories[facts[CATEGORY][0]].hosts
        return rng.choice(host or [name for name in pool.categories if name != facts[CATEGORY][0]])
    if kind == "colour":
        return "also in " + rng.choice(
            [colour for colour in catalogue.forms["colour"] if colour not in facts["colour"]]
        )
    if kind == "brand":
        popular = [brand for brand in pool.brands[:_POPULAR] if brand not in facts["brand"]]
        return f"{rng.choice(('like', 'replaces'))} {rng.choice(popular)}"
    return rng.choice(catalogue.stuffed)
