"""Queries of the marketplace: a category by name, synonym or purpose, and up to three conditions, in few words."""

from __future__ import annotations

from random import Random

from training.data.marketplace.items import ItemDrawer
from training.marketplace.catalogue import CATEGORY, Catalogue
from training.marketplace.facts import Intent

MAX_WORDS = 7
N_WANTED_WEIGHTS = (6, 36, 38, 20)
"""Of 0, 1, 2 and 3 conditions."""
_DIM_WEIGHTS = {"brand": 3, "colour": 2, "size": 2, "material": 2, "use_case": 2, "compatible_with": 4}
_SERIES = 0.35
_CATEGORY_WEIGHTS = (50, 25, 25)
"""Of the name, the synonym and the purpose."""


def draw_query(drawer: ItemDrawer, query_id: str, split: str) -> tuple[str, Intent] | None:
    """Draw a query and what it means; None where the draw has too many words.

    A category that nothing can stand in for gets a condition at least, so that a candidate can fall short.
    """
    rng, catalogue = drawer.rng, drawer.catalogue
    category = rng.choice(drawer.pool.categories)
    facts = drawer.draw(category, brands=drawer.pool.asked_brands)
    (n_wanted,) = rng.choices(range(len(N_WANTED_WEIGHTS)), N_WANTED_WEIGHTS)
    if not n_wanted and not catalogue.siblings(category):
        n_wanted = 1
    dims = _draw_dims(rng, list(facts), n_wanted, must=drawer.pool.asks_brand)
    wanted = {dim: facts[dim][0] for dim in dims}
    if "brand" in wanted and rng.random() < _SERIES:
        wanted["series"] = facts["series"][0]
    text, spans = _write(rng, catalogue, category, wanted)
    if len(text.split()) > MAX_WORDS:
        return None
    return text, Intent(query_id, split, category, wanted, spans)


def _draw_dims(rng: Random, there: list[str], number: int, *, must: bool) -> list[str]:
    dims = ["brand"] if must else []
    while len(dims) < number:
        left = [dim for dim in _DIM_WEIGHTS if dim in there and dim not in dims]
        dims += rng.choices(left, [_DIM_WEIGHTS[dim] for dim in left])
    return dims


def _write(rng: Random, catalogue: Catalogue, category: str, wanted: dict[str, str]) -> tuple[str, dict[str, str]]:
    kind = catalogue.categories[category]
    spans = {dim: rng.choice(catalogue.written(dim, value, query=True)) for dim, value in wanted.items()}
    (spans[CATEGORY],) = rng.choices((kind.name, kind.synonym, kind.purpose), _CATEGORY_WEIGHTS)
    before = [spans[dim] for dim in ("colour", "size", "material") if dim in spans]
    rng.shuffle(before)
    named = " ".join(spans[dim] for dim in ("brand", "series") if dim in spans)
    thing = [named, *before, spans[CATEGORY]] if rng.random() < 0.7 else [spans[CATEGORY], named, *before]
    after = [spans[dim] for dim in ("use_case",) if dim in spans]
    if "compatible_with" in spans:
        after.append(f"{rng.choice(('for', 'fits'))} {spans['compatible_with']}")
    return " ".join(part for part in (*thing, *after) if part), spans
