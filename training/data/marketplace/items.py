"""Items of the marketplace: true facts drawn to meet or break a wish, and the catalogue's partly wrong record."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from relevance.pairs import Item
from training.marketplace.catalogue import CATEGORY, Catalogue
from training.marketplace.facts import Facts

_USE_CASES = 2
_SAME_BRAND = 0.5
"""Chance that something for another thing than asked is at least for another series of the same brand."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What one part of the marketplace may hold.

    Args: brands: of items, the popular ones first; asked_brands: that queries ask for; asks_brand: whether every query
        asks for one.
    """

    categories: tuple[str, ...]
    brands: tuple[str, ...]
    asked_brands: tuple[str, ...]
    asks_brand: bool = False


@dataclass(frozen=True, slots=True)
class ItemDrawer:
    """Draws true facts of items from one pool."""

    rng: Random
    catalogue: Catalogue
    pool: Pool

    def draw(self, category: str, *, brands: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
        """Draw an item of a category; `brands` in place of the pool's."""
        kind = self.catalogue.categories[category]
        brand = self.rng.choice(brands or self.pool.brands)
        cases = self.catalogue.use_cases[kind.department]
        facts = {
            CATEGORY: (category,),
            "brand": (brand,),
            "series": (self.rng.choice(self.catalogue.series[brand]),),
            "colour": (self._one_of(self.catalogue.forms["colour"]),),
            "material": (self.rng.choice(kind.materials),),
            "use_case": tuple(self.rng.sample(cases, _USE_CASES)),
        }
        if kind.size:
            facts["size"] = (self.rng.choice(self.catalogue.sizes[kind.size]),)
        if kind.hosts:
            facts["compatible_with"] = (self._thing(brands or self.pool.brands),)
        return facts

    def draw_meeting(self, category: str, wanted: Mapping[str, str], *, chance: float = 1.0) -> Facts:
        """Draw an item of a category that has what is wanted, each attribute with a chance, as far as it can."""
        facts = self.draw(category)
        kind = self.catalogue.categories[category]
        for dim, value in wanted.items():
            if dim not in facts or self.rng.random() >= chance:
                continue
            if dim == "use_case":
                if value in self.catalogue.use_cases[kind.department] and value not in facts[dim]:
                    facts[dim] = (value, *facts[dim][1:])
            elif dim == "brand":
                facts["brand"], facts["series"] = (value,), (self.rng.choice(self.catalogue.series[value]),)
            elif dim != "size" or value in self.catalogue.sizes[kind.size]:
                facts[dim] = (value,)
        return facts

    def differ(self, facts: Facts, dim: str) -> Facts:
        """Give the facts with another value of one attribute, and with what hangs on it."""
        changed = dict(facts)
        changed[dim] = self.other(facts, dim)
        if dim == "brand":
            changed["series"] = (self.rng.choice(self.catalogue.series[changed["brand"][0]]),)
        return changed

    def other(self, facts: Facts, dim: str) -> tuple[str, ...]:
        """Draw values of an attribute, or a category, that an item with these facts does not have."""
        kind = self.catalogue.categories[facts[CATEGORY][0]]
        (value, *_) = facts[dim]
        if dim == "use_case":
            others = [case for case in self.catalogue.use_cases[kind.department] if case not in facts[dim]]
            return tuple(self.rng.sample(others, min(_USE_CASES, len(others))))
        if dim == "compatible_with":
            return (self._other_thing(value),)
        if dim == CATEGORY:
            near = [c for c in self.pool.categories if self.catalogue.categories[c].department == kind.department]
            choices: Collection[str] = near if len(near) > 1 else self.pool.categories
        elif dim == "brand":
            choices = self.pool.brands
        elif dim == "series":
            choices = self.catalogue.series[facts["brand"][0]]
        elif dim == "size":
            choices = self.catalogue.sizes[kind.size]
        else:
            choices = kind.materials if dim == "material" else self.catalogue.forms["colour"]
        if set(choices) <= {value}:
            choices = self.catalogue.forms[dim]
        return (self._one_of([choice for choice in choices if choice != value]),)

    def _thing(self, brands: Sequence[str]) -> str:
        brand = self.rng.choice(brands)
        return f"{brand} {self.rng.choice(self.catalogue.series[brand])}"

    def _other_thing(self, thing: str) -> str:
        brand = thing.split()[0]
        while True:
            other = self._thing((brand,) if self.rng.random() < _SAME_BRAND else self.pool.brands)
            if other != thing:
                return other

    def _one_of(self, values: Collection[str]) -> str:
        return self.rng.choice(list(values))


def catalogue_record(facts: Facts, title: str, item_id: str, drawer: ItemDrawer, noise: float) -> Item:
    """Give the item as the catalogue has it: the true title, and facts of which each is wrong with a chance."""
    record = {dim: drawer.other(facts, dim) if drawer.rng.random() < noise else values for dim, values in facts.items()}
    texts = {dim: ", ".join(values) for dim, values in record.items()}
    brand, colour = texts.pop("brand"), texts.pop("colour")
    return Item(title=title, id=item_id, brand=brand, color=colour, attributes=texts)
