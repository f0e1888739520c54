"""WANDS (Wayfair, Chen et al., ECIR 2022): query.csv, product.csv and label.csv, all tab-separated."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from relevance.errors import InputError, RowError
from relevance.labels import LabelScheme
from relevance.pairs import BadRows
from training.data.rows import SourcedPair, attributes, each_pair_once, parse_source_row
from training.recipe import DataRecipe

QUERIES, PRODUCTS, LABELS = "query.csv", "product.csv", "label.csv"
COLUMNS = {"query_id": "query_id", "query": "query", "item_id": "product_id", "title": "product_name", "label": "label"}
LOCALE = "us"
_MAX_TEXT = 2000
_MAX_FIELD = 1 << 20


def source_files(recipe: DataRecipe) -> list[Path]:
    """Name the files this source reads."""
    return [Path(recipe.path) / name for name in (QUERIES, PRODUCTS, LABELS)]


def read_pairs(recipe: DataRecipe, scheme: LabelScheme, bad_rows: BadRows) -> list[SourcedPair]:
    """Read the labelled pairs; WANDS has no split of its own.

    Raises: InputError: if a file or a column is missing; RowError: as `bad_rows` says.
    """
    queries_path, products_path, labels_path = source_files(recipe)
    queries = {row["query_id"]: row for _, row in _csv_rows(queries_path, ("query_id", "query"))}
    products = {row["product_id"]: row for _, row in _csv_rows(products_path, ("product_id", "product_name"))}

    def rows() -> Iterator[tuple[int, SourcedPair]]:
        """Give each judgement joined with its query and product."""
        for number, row in _csv_rows(labels_path, ("query_id", "product_id", "label")):
            try:
                query = _looked_up(queries, row, number, column="query_id", file=QUERIES)
                product = _looked_up(products, row, number, column="product_id", file=PRODUCTS)
                joined = {**query, **product, **row}
                ours: dict[str, object] = {name: joined[column] for name, column in COLUMNS.items()}
                ours |= {"locale": LOCALE, "source": "wands"}
                features = product.get("product_features", "").replace("|", ". ")[:_MAX_TEXT]
                ours["attributes"] = attributes(
                    bullets=features,
                    description=product.get("product_description", "")[:_MAX_TEXT],
                    category=product.get("category hierarchy", "").replace(" / ", " > ")
                    or product.get("product_class"),
                )
                pair = parse_source_row(ours, number, where=LABELS, columns=COLUMNS, scheme=scheme)
            except RowError as error:
                bad_rows.add(error)
                continue
            yield number, SourcedPair(pair)

    return list(each_pair_once(rows(), LABELS, bad_rows))


def _looked_up(
    table: dict[str, dict[str, str]], row: dict[str, str], number: int, *, column: str, file: str
) -> dict[str, str]:
    found = table.get(row[column])
    if found is None:
        raise RowError(LABELS, number, column, f"expected an id of {file}, found {row[column]!r:.60}")
    return found


def _csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a tab-separated file as (1-based data row, texts); a short row has empty texts for what is missing."""
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none")
    csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="", restkey=None)
            found = list(reader.fieldnames or [])
            missing = [name for name in required if name not in found]
            if missing:
                raise InputError(
                    f"{path}: expected tab-separated columns {list(required)}, found {found}; missing: {missing}"
                )
            for number, row in enumerate(reader, start=1):
                yield number, {name: row[name] or "" for name in found}
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected tab-separated UTF-8 text: {error}") from error
