"""The marketplace's language: categories, attribute values and the ways of writing each of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

DIMS = ("brand", "series", "colour", "size", "material", "use_case", "compatible_with")
"""The attributes a query may ask for, beside the category."""
CATEGORY = "category"
CATALOGUE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of thing.

    Args: synonym: another name; group: name shared with what can stand in for it, "" for none; purpose: what it is
        for, as a query may say instead of a name; size: name of its size range, "" for none; hosts: what it is an
        accessory of; materials: that it comes in; features: phrases of its titles, no other category's.
    """

    name: str
    synonym: str
    department: str
    group: str
    purpose: str
    size: str
    hosts: tuple[str, ...]
    materials: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All words of the marketplace.

    Args: categories: by name; forms: dimension → value → its ways of writing in titles, the plain one first;
        query_forms: the same in queries where they differ; reveal: chance that a title tells an attribute;
        use_cases: of a department; sizes: values of a size range.
    """

    brands: tuple[str, ...]
    series: Mapping[str, tuple[str, ...]]
    categories: Mapping[str, Category]
    forms: Mapping[str, Mapping[str, tuple[str, ...]]]
    query_forms: Mapping[str, Mapping[str, tuple[str, ...]]]
    reveal: Mapping[str, float]
    use_cases: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, tuple[str, ...]]
    stuffed: tuple[str, ...]
    _accessories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def siblings(self, name: str) -> tuple[str, ...]:
        """Name the categories that can stand in for one."""
        group = self.categories[name].group
        return tuple(c.name for c in self.categories.values() if group and c.group == group and c.name != name)

    def accessories(self, name: str) -> tuple[str, ...]:
        """Name the accessories of a category."""
        return self._accessories.get(name, ())

    def clusters(self) -> list[frozenset[str]]:
        """Give the sets of categories tied by stand-ins and accessories, in the order of their first member."""
        cluster_of = {name: frozenset([name]) for name in self.categories}
        for name, category in self.categories.items():
            for other in (*self.siblings(name), *category.hosts):
                merged = cluster_of[name] | cluster_of[other]
                cluster_of |= dict.fromkeys(merged, merged)
        return list(dict.fromkeys(cluster_of.values()))

    def written(self, dim: str, value: str, *, query: bool = False) -> tuple[str, ...]:
        """Give the ways of writing a value; one without an entry is written as it is."""
        if query and value in self.query_forms.get(dim, {}):
            return self.query_forms[dim][value]
        return self.forms.get(dim, {}).get(value, (value,))


@cache
def load_catalogue() -> Catalogue:
    """Read catalogue.toml, once."""
    data = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in data["categories"]
    ]
    categories = {row["name"]: Category(**row) for row in rows}
    brands, n_series, series = data["brands"], data["series_per_brand"], data["series"]
    accessories: dict[str, tuple[str, ...]] = {}
    for category in categories.values():
        for host in category.hosts:
            accessories[host] = (*accessories.get(host, ()), category.name)
    return Catalogue(
        brands=tuple(brands),
        # Brands share series names, so that a series alone does not tell its brand.
        series={
            b: tuple(series[(7 * i + 11 * k) % len(series)] for k in range(n_series)) for i, b in enumerate(brands)
        },
        categories=categories,
        forms=_forms(data, categories),
        query_forms={"use_case": {name: tuple(forms["query"]) for name, forms in data["use_case"].items()}},
        reveal=data["reveal"],
        use_cases={name: tuple(cases) for name, cases in data["department"].items()},
        sizes={name: tuple(values) for name, values in data["size"].items()},
        stuffed=tuple(data["stuffed"]),
        _accessories=accessories,
    )


def _forms(data: Mapping[str, Any], categories: Mapping[str, Category]) -> dict[str, dict[str, tuple[str, ...]]]:
    units: Mapping[str, str] = data["unit"]
    sizes: dict[str, tuple[str, ...]] = {}
    for values in data["size"].values():
        for value in values:
            number, _, unit = value.partition(" ")
            sizes[value] = (value, f"{number}{units[unit]}") if unit in units else (value,)
    return {
        CATEGORY: {name: (name, category.synonym) for name, category in categories.items()},
        "colour": {value: tuple(forms) for value, forms in data["colour"].items()},
        "material": {value: tuple(forms) for value, forms in data["material"].items()},
        "use_case": {value: tuple(forms["title"]) for value, forms in data["use_case"].items()},
        "size": sizes,
    }
