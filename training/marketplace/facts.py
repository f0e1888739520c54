"""What a query asks for, what an item is, and how the two compare: the marketplace's rules of relevance.

Suffixes: N pairs, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from relevance.pairs import Item, parquet_rows
from training.marketplace.catalogue import CATEGORY, DIMS, Catalogue
from training.recipe import Perspective

Verdict = Literal["match", "mismatch", "missing"]
Relation = Literal["same", "sibling", "accessory", "host", "other", "unknown"]
RELATIONS: tuple[Relation, ...] = ("same", "sibling", "accessory", "host", "other", "unknown")
"""The item's category seen from the one asked for; `accessory`: the item is one of it; `host`: the other way round."""
INTENTS, TRUTH = "queries.parquet", "truth.parquet"
PERSPECTIVE_DIMS: dict[Perspective, tuple[str, ...]] = {
    "user": ("use_case", "size", "colour"),
    "struct": ("brand", "series", "colour", "size", "material"),
    "rule": ("brand", "compatible_with"),
}
"""The attributes each perspective goes through one by one; all three look at the category."""
_VERDICT_VALUE: dict[Verdict, float] = {"match": 1.0, "missing": 0.0, "mismatch": -1.0}


@dataclass(frozen=True, slots=True)
class Intent:
    """What a reader of a query would understand.

    Args: split: the query's; wanted: attribute → value asked for; spans: `category` and attributes → the words of the
        query that say so.
    """

    query_id: str
    split: str
    category: str
    wanted: Mapping[str, str]
    spans: Mapping[str, str]


Facts = Mapping[str, tuple[str, ...]]
"""`category` and attributes → values of one item; nothing where nothing is known. Several values may all be true."""


@dataclass(frozen=True, slots=True)
class Match:
    """An intent held against facts.

    Args: verdicts: by attribute asked for, in the order of `DIMS`.
    """

    relation: Relation
    verdicts: Mapping[str, Verdict]

    @property
    def n_unmet(self) -> int:
        """Number of attributes asked for that are known to differ."""
        return sum(verdict == "mismatch" for verdict in self.verdicts.values())


def compare(intent: Intent, facts: Facts, catalogue: Catalogue) -> Match:
    """Hold what a query asks for against what is known of an item."""
    verdicts: dict[str, Verdict] = {}
    for dim in (d for d in DIMS if d in intent.wanted):
        known = facts.get(dim, ())
        verdicts[dim] = "match" if intent.wanted[dim] in known else "mismatch" if known else "missing"
    return Match(_relation(intent.category, facts.get(CATEGORY, ()), catalogue), verdicts)


def label_of(match: Match) -> str:
    """Give the ESCI class of a comparison with an item's true facts.

    E: the thing asked for, with all that was asked; S: the thing with something else than asked, or what stands in for
    it; C: its accessory, or the thing where the accessory was asked for; I: anything else.
    """
    if match.relation == "same":
        return "S" if match.n_unmet else "E"
    return {"sibling": "S", "accessory": "C", "host": "C"}.get(match.relation, "I")


def facts_of_item(item: Item) -> Facts:
    """Read the catalogue facts of an item of the marketplace, wrong ones included."""
    single = {"brand": item.brand, "colour": item.color, **item.attributes}
    facts: dict[str, tuple[str, ...]] = {dim: (text,) for dim, text in single.items() if text}
    facts["use_case"] = tuple(part for part in item.attributes.get("use_case", "").split(", ") if part)
    return facts


def match_features(matches: Sequence[Match], perspective: Perspective | None = None) -> NDArray[np.float32]:
    """Give numbers that a classifier can read, of everything or of what one perspective looks at.

    Returns: float32 of shape (N, F): the relation, as one column each; by attribute 1 for a match, 0 for missing, −1
        for a mismatch, nan where it is not asked for; the numbers of each verdict. Every perspective sees the relation,
        which every perspective's rationale tells.
    """
    dims = DIMS if perspective is None else PERSPECTIVE_DIMS[perspective]
    rows = []
    for match in matches:
        values = [_VERDICT_VALUE[match.verdicts[d]] if d in match.verdicts else np.nan for d in dims]
        seen = list(match.verdicts.values() if perspective in (None, "user") else _chosen(match, dims))
        counts = [float(seen.count(verdict)) for verdict in _VERDICT_VALUE]
        rows.append([*(float(match.relation == r) for r in RELATIONS), *values, *counts])
    return np.asarray(rows, dtype=np.float32).reshape(len(matches), len(RELATIONS) + len(dims) + len(_VERDICT_VALUE))


def write_intents(path: Path, intents: Iterable[Intent]) -> None:
    """Write intents as Parquet, one row a query."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    maps = {"wanted", "spans"}
    rows = [{n: list(getattr(i, n).items()) if n in maps else getattr(i, n) for n in Intent.__slots__} for i in intents]
    text_map = pa.map_(pa.string(), pa.string())
    schema = pa.schema([(name, text_map if name in maps else pa.string()) for name in Intent.__slots__])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def read_intents(path: Path) -> dict[str, Intent]:
    """Read intents by query id.

    Raises: InputError: if the file is not Parquet or lacks a column.
    """
    rows = parquet_rows(path, Intent.__slots__)
    return {
        row["query_id"]: Intent(**{**row, "wanted": dict(row["wanted"]), "spans": dict(row["spans"])})
        for _, row in rows
    }


def write_truth(path: Path, rows: Iterable[tuple[str, str, Match]]) -> None:
    """Write the true comparison of each pair, and the label before noise, as Parquet.

    Args: rows: pair id, label, comparison of the intent with the item's true facts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = [
        {"pair_id": pair_id, "label": label, "relation": match.relation, "verdicts": list(match.verdicts.items())}
        for pair_id, label, match in rows
    ]
    text, text_map = pa.string(), pa.map_(pa.string(), pa.string())
    schema = pa.schema([("pair_id", text), ("label", text), ("relation", text), ("verdicts", text_map)])
    pq.write_table(pa.Table.from_pylist(listed, schema=schema), path, compression="zstd")


def read_truth(path: Path) -> dict[str, tuple[str, Match]]:
    """Read, by pair id, the label before noise and the true comparison.

    Raises: InputError: if the file is not Parquet or lacks a column.
    """
    rows = parquet_rows(path, ("pair_id", "label", "relation", "verdicts"))
    return {row["pair_id"]: (row["label"], Match(row["relation"], dict(row["verdicts"]))) for _, row in rows}


def _chosen(match: Match, dims: Sequence[str]) -> list[Verdict]:
    return [verdict for dim, verdict in match.verdicts.items() if dim in dims]


def _relation(asked: str, known: tuple[str, ...], catalogue: Catalogue) -> Relation:
    if not known:
        return "unknown"
    if asked in known:
        return "same"
    (name, *_) = known
    if name in catalogue.siblings(asked):
        return "sibling"
    if name in catalogue.accessories(asked):
        return "accessory"
    return "host" if name in catalogue.categories[asked].hosts else "other"
