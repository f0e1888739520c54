"""The official ESCI tables (arXiv:2206.06588): examples joined to products on locale and product id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relevance.errors import InputError, RowError
from relevance.labels import LabelScheme
from relevance.pairs import BadRows, parquet_rows
from training.data.rows import SourcedPair, attributes, each_pair_once, own_split, parse_source_row
from training.data.split import plan_splits
from training.recipe import DataRecipe
from training.words import normalise_query

EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"
COLUMNS = {
    "query_id": "query_id",
    "query": "query",
    "locale": "product_locale",
    "item_id": "product_id",
    "title": "product_title",
    "brand": "product_brand",
    "color": "product_color",
    "label": "esci_label",
}
_EXAMPLE_COLUMNS = ("query_id", "query", "product_id", "product_locale", "esci_label", "split")
_PRODUCT_COLUMNS = (
    "product_id",
    "product_locale",
    "product_title",
    "product_brand",
    "product_color",
    "product_bullet_point",
    "product_description",
)
_MAX_BULLETS = 2000
_MAX_DESCRIPTION = 1500


def source_files(recipe: DataRecipe) -> list[Path]:
    """Name the files this source reads."""
    return [Path(recipe.path) / EXAMPLES, Path(recipe.path) / PRODUCTS]


def read_pairs(recipe: DataRecipe, scheme: LabelScheme, bad_rows: BadRows) -> list[SourcedPair]:
    """Read the examples of the chosen version and locales, joined with their products.

    Queries that `max_queries` leaves out are dropped before the join, so a small run never holds the product table.

    Raises: InputError: if a file or a column is missing; RowError: as `bad_rows` says.
    """
    examples_path, products_path = source_files(recipe)
    examples = _examples(examples_path, recipe, bad_rows)
    plan = plan_splits(((row["query"], row["split"]) for _, row in examples), recipe)
    examples = [(n, row) for n, row in examples if (normalise_query(row["query"]), row["split"]) in plan]
    products = _products(products_path, {(row["product_locale"], row["product_id"]) for _, row in examples})
    return list(each_pair_once(_joined(examples, products, scheme, bad_rows), EXAMPLES, bad_rows))


def _examples(path: Path, recipe: DataRecipe, bad_rows: BadRows) -> list[tuple[int, dict[str, Any]]]:
    version = "large_version" if recipe.large_version else "small_version"
    needed = (*_EXAMPLE_COLUMNS, version)
    kept = []
    for number, row in parquet_rows(path, needed, needed):
        if not row[version] or (recipe.locales is not None and row["product_locale"] not in recipe.locales):
            continue
        try:
            own_split(row["split"], number, where=EXAMPLES, known=("train", "test"))
            if not isinstance(row["query"], str):
                raise RowError(EXAMPLES, number, "query", f"expected a text, found {row['query']!r:.60}")
        except RowError as error:
            bad_rows.add(error)
            continue
        kept.append((number, row))
    return kept


def _products(path: Path, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none")
    rows = parquet_rows(path, _PRODUCT_COLUMNS, _PRODUCT_COLUMNS)
    found = {}
    for _, row in rows:
        key = (row["product_locale"], row["product_id"])
        if key in wanted:
            row["product_bullet_point"] = (row["product_bullet_point"] or "")[:_MAX_BULLETS]
            row["product_description"] = (row["product_description"] or "")[:_MAX_DESCRIPTION]
            found[key] = row
    return found


def _joined(
    examples: list[tuple[int, dict[str, Any]]],
    products: dict[tuple[str, str], dict[str, Any]],
    scheme: LabelScheme,
    bad_rows: BadRows,
) -> Iterator[tuple[int, SourcedPair]]:
    for number, row in examples:
        key = (row["product_locale"], row["product_id"])
        product = products.get(key)
        try:
            if product is None:
                raise RowError(EXAMPLES, number, "product_id", f"expected a product of {PRODUCTS}, found {key} in none")
            ours = {name: {**row, **product}[column] for name, column in COLUMNS.items()}
            ours["query_id"], ours["source"] = str(row["query_id"]), "esci"
            ours["attributes"] = attributes(
                bullets=product["product_bullet_point"], description=product["product_description"]
            )
            pair = parse_source_row(ours, number, where=EXAMPLES, columns=COLUMNS, scheme=scheme)
        except RowError as error:
            bad_rows.add(error)
            continue
        yield number, SourcedPair(pair, row["split"])
