"""esci-mini: labelled ESCI pairs with text in one Parquet file, optionally joined with longer product texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from relevance.errors import InputError, RowError
from relevance.labels import LabelScheme
from relevance.pairs import BadRows, parquet_rows
from training.data.rows import SourcedPair, attributes, each_pair_once, own_split, parse_source_row
from training.recipe import DataRecipe

PAIRS = "esci_mini.parquet"
PRODUCTS = "esci_products.parquet"
COLUMNS = {
    "query_id": "query_id",
    "query": "query",
    "locale": "query_locale",
    "item_id": "product_id",
    "title": "product_title",
    "brand": "product_brand",
    "color": "product_color",
    "label": "esci_label",
    "source": "source",
    "exact_only": "exact_only_source",
}
_PRIVILEGED = ("product_bullet_point", "product_description")


def source_files(recipe: DataRecipe) -> list[Path]:
    """Name the files this source reads."""
    files = [Path(recipe.path) / PAIRS]
    if recipe.products is not None:
        files.append(Path(recipe.products) / PRODUCTS)
    return files


def read_pairs(recipe: DataRecipe, scheme: LabelScheme, bad_rows: BadRows) -> list[SourcedPair]:
    """Read the pairs with their own splits.

    Bullets, description and category become attributes; they are for the teacher and no template names them.

    Raises: InputError: if a file or a column is missing; RowError: as `bad_rows` says.
    """
    files = source_files(recipe)
    longer = _longer_texts(files[1]) if len(files) > 1 else {}
    return list(each_pair_once(_rows(files[0], longer, scheme, bad_rows), PAIRS, bad_rows))


def _rows(
    path: Path, longer: Mapping[str, Mapping[str, Any]], scheme: LabelScheme, bad_rows: BadRows
) -> Iterator[tuple[int, SourcedPair]]:
    for number, row in parquet_rows(path, (*COLUMNS.values(), *_PRIVILEGED, "split")):
        try:
            split = own_split(row["split"], number, where=PAIRS, known=("train", "dev", "test"))
            ours = {name: row[column] for name, column in COLUMNS.items()}
            # The longer texts are those of the US marketplace; an item of another one keeps its own.
            join = longer.get(row["product_id"], {}) if row.get("product_locale", "us") == "us" else {}
            ours["attributes"] = attributes(
                bullets=join.get("product_bullet_point") or row["product_bullet_point"],
                description=join.get("product_description") or row["product_description"],
                category=join.get("category"),
            )
            pair = parse_source_row(ours, number, where=PAIRS, columns=COLUMNS, scheme=scheme)
        except RowError as error:
            bad_rows.add(error)
            continue
        yield number, SourcedPair(pair, split)


def _longer_texts(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none")
    needed = ("product_id", "product_locale", *_PRIVILEGED, "category")
    return {row["product_id"]: row for _, row in parquet_rows(path, needed, needed) if row["product_locale"] == "us"}
