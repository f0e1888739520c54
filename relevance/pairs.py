"""Query–item pairs: frozen rows, and JSONL or Parquet files of them with row-numbered errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from relevance.errors import InputError, LabelError, RowError
from relevance.labels import LabelScheme

OnBadRow = Literal["fail", "skip"]
PAIR_COLUMNS = ("query_id", "query", "locale", "item_id", "title", "brand", "color", "text", "attributes")
_IDS = ("query_id", "item_id")
LABELLED_COLUMNS = (*PAIR_COLUMNS, "label", "source", "exact_only")
_ROWS_AT_ONCE = 50_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Query:
    """A shopper's text, with an id and the marketplace it was typed in (BCP-47 tag or marketplace code)."""

    text: str
    id: str = ""
    locale: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A catalogue record; only `title` must be there. `attributes` holds any further named texts."""

    title: str
    id: str | int = ""
    brand: str | None = None
    color: str | None = None
    text: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def field(self, name: str) -> str | None:
        """Give a field by its template name (`title`, `brand`, `color`, `text`, `attributes.NAME`), None if missing."""
        if name.startswith("attributes."):
            return self.attributes.get(name.removeprefix("attributes."))
        value: str | None = getattr(self, name)
        return value


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and an item: the unit we label, train on and score."""

    query: Query
    item: Item

    @property
    def pair_id(self) -> str:
        """The key of a pair in every file: query id and item id with a tab between."""
        return f"{self.query.id}\t{self.item.id}"


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A pair with the class an annotator gave it.

    Args: label: a code of the scheme; source: which collection it came from; exact_only: that collection holds only
        pairs of the most relevant class, so it says nothing about class shares.
    """

    pair: Pair
    label: str
    source: str = ""
    exact_only: bool = False


@dataclass(slots=True)
class BadRows:
    """What to do with bad rows, and how many there were.

    Args: policy: `fail` raises the first error; `skip` counts it and keeps the first twenty for the report.
    """

    policy: OnBadRow = "fail"
    count: int = 0
    first: list[RowError] = field(default_factory=list)

    def add(self, error: RowError) -> None:
        """Raise the error or count it, as the policy says.

        Raises: RowError: under `fail`.
        """
        if self.policy == "fail":
            raise error
        self.count += 1
        if len(self.first) < 20:
            self.first.append(error)


def parse_pair(row: Mapping[str, Any], number: int, where: str) -> Pair:
    """Read one row of plain values.

    Args: row: at least `query` and `title`; `query_id` and `item_id` default to the query text and the row number.
    Raises: RowError: naming the column, what was expected and what came.
    """

    def text(column: str, *, required: bool = False) -> str | None:
        """Give a column's text, None if it is missing and need not be there."""
        value = row.get(column)
        if value is None or (isinstance(value, float) and value != value):
            if required:
                raise RowError(where, number, column, "expected a text, found nothing")
            return None
        if not isinstance(value, str):
            raise RowError(where, number, column, f"expected a text, found {type(value).__name__} {value!r:.60}")
        if required and not value.strip():
            raise RowError(where, number, column, "expected a text, found only white space")
        if column in _IDS and _LONE_SURROGATE.search(value):
            raise RowError(where, number, column, f"expected whole characters, found {value!a:.60}")
        return _whole(value)

    query_text, title = text("query", required=True) or "", text("title", required=True) or ""
    item_id = row.get("item_id")
    if isinstance(item_id, str):
        item_id = text("item_id")
    if item_id is not None and (isinstance(item_id, bool) or not isinstance(item_id, str | int)):
        raise RowError(where, number, "item_id", f"expected a text or an integer, found {item_id!r:.60}")
    query = Query(text=query_text, id=text("query_id") or query_text, locale=text("locale"))
    item = Item(
        title=title,
        id=number if item_id is None else item_id,
        brand=text("brand"),
        color=text("color"),
        text=text("text"),
        attributes=_parse_attributes(row.get("attributes"), number, where),
    )
    return Pair(query, item)


def parse_labelled_pair(row: Mapping[str, Any], number: int, where: str, scheme: LabelScheme) -> LabelledPair:
    """Read one row of plain values that carries a label.

    Raises: RowError: naming the column, what was expected and what came.
    """
    pair = parse_pair(row, number, where)
    label = row.get("label")
    if not isinstance(label, str):
        raise RowError(where, number, "label", f"expected one of {', '.join(scheme.classes)}, found {label!r:.60}")
    try:
        label = scheme.classes[scheme.index(label)]
    except LabelError as error:
        raise RowError(where, number, "label", str(error)) from error
    return LabelledPair(pair, label, _whole(str(row.get("source") or "")), parse_exact_only(row, number, where))


def parse_exact_only(row: Mapping[str, Any], number: int, where: str) -> bool:
    """Read a row's flag of an Exact-only source; none, null and nan are false.

    Raises: RowError: if it is anything but true or false, such as a text.
    """
    flag = row.get("exact_only")
    if flag is None or flag != flag:
        return False
    if not isinstance(flag, bool):
        raise RowError(where, number, "exact_only", f"expected true or false, found {flag!r:.60}")
    return flag


def read_pairs(path: Path, bad_rows: BadRows | None = None) -> Iterator[Pair]:
    """Read pairs from a `.jsonl` or `.parquet` file, one at a time.

    Raises: InputError: if the file is missing, of another kind, or lacks a column; RowError: as `bad_rows` says.
    """
    bad_rows = bad_rows or BadRows()
    for number, row in plain_rows(path, ("query", "title"), bad_rows):
        try:
            yield parse_pair(row, number, path.name)
        except RowError as error:
            bad_rows.add(error)


def read_labelled_pairs(path: Path, scheme: LabelScheme, bad_rows: BadRows | None = None) -> list[LabelledPair]:
    """Read labelled pairs from a `.jsonl` or `.parquet` file.

    Raises: InputError: if the file is missing, of another kind, or lacks a column; RowError: as `bad_rows` says.
    """
    return [pair for _, pair in numbered_labelled_pairs(path, scheme, bad_rows)]


def numbered_labelled_pairs(
    path: Path, scheme: LabelScheme, bad_rows: BadRows | None = None
) -> Iterator[tuple[int, LabelledPair]]:
    """Read labelled pairs one at a time, each with its 1-based row number.

    Raises: InputError: if the file is missing, of another kind, or lacks a column; RowError: as `bad_rows` says.
    """
    bad_rows = bad_rows or BadRows()
    for number, row in plain_rows(path, ("query", "title", "label"), bad_rows):
        try:
            pair = parse_labelled_pair(row, number, path.name, scheme)
        except RowError as error:
            bad_rows.add(error)
            continue
        yield number, pair


def write_labelled_pairs(path: Path, pairs: Iterable[LabelledPair]) -> None:
    """Write labelled pairs to a `.jsonl` or `.parquet` file that `read_labelled_pairs` reads back equal.

    Raises: InputError: if the file's ending is neither.
    """
    rows = map(_labelled_row, pairs)
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif path.suffix == ".parquet":
        _write_parquet(path, rows)
    else:
        raise InputError(f"{path}: expected a .jsonl or .parquet file")


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.string() for name in LABELLED_COLUMNS} | {"exact_only": pa.bool_()}
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            for row in chunk:
                row["item_id"] = str(row["item_id"])
                row["attributes"] = json.dumps(row["attributes"], ensure_ascii=False)
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


def _labelled_row(labelled: LabelledPair) -> dict[str, Any]:
    query, item = labelled.pair.query, labelled.pair.item
    return {
        "query_id": query.id,
        "query": query.text,
        "locale": query.locale,
        "item_id": item.id,
        "title": item.title,
        "brand": item.brand,
        "color": item.color,
        "text": item.text,
        "attributes": dict(item.attributes),
        "label": labelled.label,
        "source": labelled.source,
        "exact_only": labelled.exact_only,
    }


def _parse_attributes(value: object, number: int, where: str) -> dict[str, str]:
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(where, number, "attributes", f"expected a JSON object of texts: {error}") from error
    if isinstance(value, dict):
        # Parquet fills the keys that a row lacks with nulls.
        value = {name: text for name, text in value.items() if text is not None}
    if not value:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise RowError(where, number, "attributes", f"expected an object of texts, found {value!r:.80}")
    return {_whole(str(k)): _whole(v) for k, v in value.items()}


def _whole(text: str) -> str:
    """Replace lone surrogates, halves of characters that no file can hold; the template makes blanks of both."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def plain_rows(path: Path, required: tuple[str, ...], bad_rows: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a .jsonl or .parquet file as (1-based row number, plain values).

    Args: required: columns that a Parquet file must have; of a JSON line, each value is checked where it is used.
    Raises: InputError: if the file is missing or of another kind; RowError: of a bad line, as `bad_rows` says.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none")
    if path.suffix == ".jsonl":
        yield from _jsonl_rows(path, bad_rows)
    elif path.suffix == ".parquet":
        yield from parquet_rows(path, required)
    else:
        raise InputError(f"{path}: expected a .jsonl or .parquet file")


def _jsonl_rows(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                bad_rows.add(RowError(path.name, number, "*", f"expected one JSON object in UTF-8: {error}"))
                continue
            if not isinstance(row, dict):
                bad_rows.add(RowError(path.name, number, "*", f"expected a JSON object, found {type(row).__name__}"))
                continue
            yield number, row


def parquet_rows(
    path: Path, required: tuple[str, ...], columns: tuple[str, ...] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a Parquet file as (1-based row number, plain values), batch by batch.

    Args: required: columns that must be there; columns: columns to read, None for all.
    Raises: InputError: if the file is not Parquet or a required column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: expected a Parquet file: {error}") from error
    found = file.schema_arrow.names
    missing = [name for name in required if name not in found]
    if missing:
        raise InputError(f"{path}: expected the columns {list(required)}, found {found}; missing: {missing}")
    wanted = None if columns is None else [c for c in columns if c in found]
    number = 0
    for batch in file.iter_batches(columns=wanted):
        for row in batch.to_pylist():
            number += 1
            yield number, row
