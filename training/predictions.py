"""Predictions: pair id → logits, what every scorer writes and calibrate and evaluate read.

Suffixes: N pairs, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, parquet_rows


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits of N pairs, in the order of the pairs file, with what the measures need to know of each pair.

    Args: pair_id, query_id, item_id, query, locale ("" if unknown), source: str of shape (N,); label: class index;
        exact_only: bool; logits_NK: float64.
    """

    pair_id: NDArray[np.str_]
    query_id: NDArray[np.str_]
    item_id: NDArray[np.str_]
    query: NDArray[np.str_]
    locale: NDArray[np.str_]
    source: NDArray[np.str_]
    label: NDArray[np.int64]
    exact_only: NDArray[np.bool_]
    logits_NK: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Predictions:
        """Give some of the rows, by mask or by index."""
        return Predictions(**{name: getattr(self, name)[chosen] for name in self.__slots__})


def predictions_of(pairs: list[LabelledPair], logits_NK: NDArray[np.floating], scheme: LabelScheme) -> Predictions:
    """Join labelled pairs with their logits."""
    return Predictions(
        pair_id=np.array([p.pair.pair_id for p in pairs], dtype=np.str_),
        query_id=np.array([p.pair.query.id for p in pairs], dtype=np.str_),
        item_id=np.array([str(p.pair.item.id) for p in pairs], dtype=np.str_),
        query=np.array([p.pair.query.text for p in pairs], dtype=np.str_),
        locale=np.array([p.pair.query.locale or "" for p in pairs], dtype=np.str_),
        source=np.array([p.source for p in pairs], dtype=np.str_),
        label=np.array([scheme.index(p.label) for p in pairs], dtype=np.int64),
        exact_only=np.array([p.exact_only for p in pairs], dtype=bool),
        logits_NK=np.asarray(logits_NK, dtype=np.float64).reshape(len(pairs), scheme.n_classes),
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as Parquet, one row a pair."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: getattr(predictions, name).tolist() for name in predictions.__slots__ if name != "logits_NK"}
    columns["logits"] = predictions.logits_NK.tolist()
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_predictions(path: Path) -> Predictions:
    """Read predictions.

    Raises: InputError: if the file is not Parquet or lacks a column.
    """
    names = [name for name in Predictions.__slots__ if name != "logits_NK"]
    rows = [row for _, row in parquet_rows(path, (*names, "logits"))]
    text = {name: np.array([r[name] for r in rows], dtype=np.str_) for name in names[:6]}
    return Predictions(
        **text,
        label=np.array([r["label"] for r in rows], dtype=np.int64),
        exact_only=np.array([r["exact_only"] for r in rows], dtype=bool),
        logits_NK=np.array([r["logits"] for r in rows], dtype=np.float64).reshape(len(rows), -1 if rows else 0),
    )
