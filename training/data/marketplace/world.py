"""The synthetic marketplace: queries, candidates, labels by rule, noise, and splits with parts held out of training.

A candidate is drawn for a class, so that most are near misses and the classes have the shares of `PRIORS`, but its
label is what the rules of `training.marketplace.facts` say of its true facts, with noise. Source: ours.
Suffixes: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from relevance.errors import InputError, RecipeError
from relevance.pairs import LabelledPair, Pair, Query
from training.data.marketplace.items import ItemDrawer, Pool, catalogue_record
from training.data.marketplace.queries import draw_query
from training.data.marketplace.title_index import TitleIndex
from training.data.marketplace.titles import write_title
from training.data.rows import SourcedPair
from training.marketplace.catalogue import Catalogue, load_catalogue
from training.marketplace.facts import Facts, Intent, Match, compare, label_of
from training.recipe import SPLITS, MarketplaceRecipe, Split
from training.words import same_words_key

CLASSES = ("E", "S", "C", "I")
PRIORS = (0.60, 0.22, 0.04, 0.14)
"""Shares of E, S, C and I among the labels, noise included."""
NEIGHBOURS = {"E": ("S",), "S": ("E", "C"), "C": ("S", "I"), "I": ("C",)}
MAIN, NEW_CATEGORY, NEW_BRAND = "main", "heldout_category", "heldout_brand"
SLICE_SHARE = 0.2
"""Queries of each held-out slice, per query of the main test part; they come on top of it."""
_CONCENTRATION = 10.0
"""Of the class shares of one query around `PRIORS`: shares differ between queries as they do in real judgements."""
_BY_SIBLING, _ONE_UNMET = 0.2, 0.8
_NEAR, _KEEP = 0.75, 0.7
_TRIES = 1000


@dataclass(frozen=True, slots=True)
class World:
    """Everything that the data stage writes.

    Args: truth: pair id, label before noise, and the comparison with the item's true facts, in the order of pairs.
    """

    pairs: list[SourcedPair]
    intents: list[Intent]
    truth: list[tuple[str, str, Match]]
    held_out: HeldOut


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Categories and brands that no split but test knows."""

    categories: frozenset[str]
    brands: frozenset[str]


def hold_out(catalogue: Catalogue, seed: int, share: float) -> HeldOut:
    """Choose the share of categories and of brands that training never sees.

    Categories go together with what stands in for them and with their accessories, so the share is met from above.
    """
    rng = Random(f"{seed}/held out")
    clusters, brands = catalogue.clusters(), list(catalogue.brands)
    rng.shuffle(clusters)
    rng.shuffle(brands)
    chosen: set[str] = set()
    while len(chosen) < share * len(catalogue.categories):
        chosen |= clusters.pop()
    return HeldOut(frozenset(chosen), frozenset(brands[: round(share * len(brands))]))


def make_world(recipe: MarketplaceRecipe) -> World:
    """Make the world a recipe describes, the same one for the same recipe."""
    return _make_world(recipe.model_dump_json())


@lru_cache(maxsize=1)
def _make_world(recipe_json: str) -> World:
    recipe = MarketplaceRecipe.model_validate_json(recipe_json)
    return _Maker(recipe, load_catalogue()).make()


class _Maker:
    """Draws the queries and candidates of all splits, none of which repeats a query or nearly repeats a title."""

    def __init__(self, recipe: MarketplaceRecipe, catalogue: Catalogue) -> None:
        self._recipe, self._catalogue = recipe, catalogue
        self._clean_K = clean_priors(recipe.label_noise)
        self._queries: set[str] = set()
        self._titles = TitleIndex()
        self._pairs: list[SourcedPair] = []
        self._intents: list[Intent] = []
        self._truth: list[tuple[str, str, Match]] = []

    def make(self) -> World:
        """Draw everything, split by split."""
        held_out = hold_out(self._catalogue, self._recipe.seed, self._recipe.held_out)
        pools = _pools(self._catalogue, held_out)
        for split in SPLITS:
            number = self._recipe.queries.get(split, 0)
            self._draw_split(split, {MAIN: number} if split != "test" else _with_slices(number, held_out), pools)
        return World(self._pairs, self._intents, self._truth, held_out)

    def _draw_split(self, split: Split, numbers: Mapping[str, int], pools: Mapping[str, Pool]) -> None:
        titles: list[str] = []
        for source, number in numbers.items():
            for n in range(number):
                query_id = f"{split}-{source}-{n:05d}"
                drawer = ItemDrawer(Random(f"{self._recipe.seed}/{query_id}"), self._catalogue, pools[source])
                text, intent = self._draw_query(drawer, query_id, split)
                self._intents.append(intent)
                titles += self._draw_candidates(drawer, Query(text, query_id, "us"), intent, source)
        self._titles.add(titles)

    def _draw_query(self, drawer: ItemDrawer, query_id: str, split: Split) -> tuple[str, Intent]:
        for _ in range(_TRIES):
            drawn = draw_query(drawer, query_id, split)
            if drawn is not None and (key := same_words_key(drawn[0])) not in self._queries:
                self._queries.add(key)
                return drawn
        raise InputError(f"data.marketplace.queries: expected room for new queries, found none for {query_id}")

    def _draw_candidates(self, drawer: ItemDrawer, query: Query, intent: Intent, source: str) -> list[str]:
        rng = drawer.rng
        shares = [rng.gammavariate(_CONCENTRATION * share, 1.0) for share in self._clean_K]
        titles = []
        for k, aim in enumerate(rng.choices(CLASSES, shares, k=self._recipe.candidates)):
            facts, title = self._draw_item(drawer, intent, aim)
            item = catalogue_record(facts, title, f"{query.id}-{k:02d}", drawer, self._recipe.fact_noise)
            pair, match = Pair(query, item), compare(intent, facts, self._catalogue)
            clean = label_of(match)
            labelled = LabelledPair(pair, _noisy(rng, clean, self._recipe.label_noise), source)
            self._pairs.append(SourcedPair(labelled, intent.split))
            self._truth.append((pair.pair_id, clean, match))
            titles.append(title)
        return titles

    def _draw_item(self, drawer: ItemDrawer, intent: Intent, aim: str) -> tuple[Facts, str]:
        for _ in range(_TRIES):
            facts = _candidate(drawer, intent, aim)
            title = write_title(drawer.rng, self._catalogue, facts, drawer.pool)
            if not self._titles.nearly_has(title):
                return facts, title
        raise InputError(f"data.marketplace: expected room for new titles, found none for query {intent.query_id}")


def clean_priors(noise: float) -> list[float]:
    """Give the class shares before noise that give `PRIORS` after it."""
    moved_KK = np.eye(len(CLASSES)) * (1 - noise)
    for k, name in enumerate(CLASSES):
        weights = _neighbour_weights(name)
        for neighbour, weight in zip(NEIGHBOURS[name], weights, strict=True):
            moved_KK[CLASSES.index(neighbour), k] += noise * weight / sum(weights)
    clean_K = np.clip(np.linalg.lstsq(moved_KK, np.array(PRIORS), rcond=None)[0], 0.01, None)
    return [float(share) for share in clean_K / clean_K.sum()]


def _neighbour_weights(label: str) -> list[float]:
    return [PRIORS[CLASSES.index(name)] for name in NEIGHBOURS[label]]


def _noisy(rng: Random, label: str, noise: float) -> str:
    """Move a label to an adjacent class with a chance, rather to the commoner of two."""
    if rng.random() >= noise:
        return label
    return rng.choices(NEIGHBOURS[label], _neighbour_weights(label))[0]


def _candidate(drawer: ItemDrawer, intent: Intent, aim: str) -> Facts:
    """Draw an item whose class for the intent should be the one aimed at."""
    rng, catalogue = drawer.rng, drawer.catalogue
    asked, wanted = catalogue.categories[intent.category], intent.wanted
    if aim == "E":
        return drawer.draw_meeting(asked.name, wanted)
    if aim == "S":
        siblings = catalogue.siblings(asked.name)
        if siblings and (not wanted or rng.random() < _BY_SIBLING):
            return drawer.draw_meeting(rng.choice(siblings), wanted, chance=_KEEP)
        facts = drawer.draw_meeting(asked.name, wanted)
        for dim in rng.sample(list(wanted), min(len(wanted), 1 + (rng.random() >= _ONE_UNMET))):
            facts = drawer.differ(facts, dim)
        return facts
    if aim == "C":
        return _related(drawer, intent)
    kin = {asked.name, *catalogue.siblings(asked.name), *catalogue.accessories(asked.name), *asked.hosts}
    others = [name for name in drawer.pool.categories if name not in kin]
    near = [name for name in others if catalogue.categories[name].department == asked.department]
    if not others:
        raise RecipeError(
            "data.marketplace.held_out: expected a share that holds out several categories, found "
            f"{', '.join(drawer.pool.categories)} alone, which no item is irrelevant to"
        )
    category = rng.choice(near if near and rng.random() < _NEAR else others)
    return drawer.draw_meeting(category, wanted, chance=_KEEP)


def _related(drawer: ItemDrawer, intent: Intent) -> Facts:
    """Draw an accessory of the thing asked for, of the very series where one is asked for, or an accessory's thing."""
    rng, catalogue, wanted = drawer.rng, drawer.catalogue, dict(intent.wanted)
    accessories = catalogue.accessories(intent.category)
    if accessories:
        brand = wanted.get("brand") or rng.choice(drawer.pool.brands)
        series = wanted.get("series") or rng.choice(catalogue.series[brand])
        goes_with = {"compatible_with": f"{brand} {series}"}
        return drawer.draw_meeting(rng.choice(accessories), {**wanted, **goes_with}, chance=_KEEP)
    if "compatible_with" in wanted:
        wanted["brand"], wanted["series"] = wanted["compatible_with"].split()
    return drawer.draw_meeting(rng.choice(catalogue.categories[intent.category].hosts), wanted)


def _pools(catalogue: Catalogue, held_out: HeldOut) -> dict[str, Pool]:
    main = tuple(name for name in catalogue.categories if name not in held_out.categories)
    new = tuple(name for name in catalogue.categories if name in held_out.categories)
    brands = tuple(brand for brand in catalogue.brands if brand not in held_out.brands)
    new_brands = tuple(brand for brand in catalogue.brands if brand in held_out.brands)
    return {
        MAIN: Pool(main, brands, brands),
        NEW_CATEGORY: Pool(new, brands, brands),
        NEW_BRAND: Pool(main, (*brands, *new_brands), new_brands, asks_brand=True),
    }


def _with_slices(number: int, held_out: HeldOut) -> dict[str, int]:
    slices = {NEW_CATEGORY: held_out.categories, NEW_BRAND: held_out.brands}
    return {MAIN: number} | {source: round(SLICE_SHARE * number) for source, names in slices.items() if names}
