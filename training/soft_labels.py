"""Soft labels: unlabelled or labelled pairs with a teacher's probabilities, as stage `annotate` writes them.

Suffixes: N pairs, K classes, F features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError
from relevance.pairs import Pair, parquet_rows, parse_pair
from training.student_recipe import StudentRecipe

FILE = "soft_labels.parquet"


def soft_labels_file(recipe: StudentRecipe) -> str:
    """Name the file of the distributions that a student learns from: all evidence's, or one perspective's."""
    return FILE if recipe.soft_labels == "all" else f"soft_labels.{recipe.soft_labels}.parquet"


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """N pairs with what a teacher says of them.

    Args: probabilities_NK: float32, rows summing to 1; features_NF: standardised evidence, nan where missing, a target
        of the student's training-only regression.
    """

    pairs: list[Pair]
    probabilities_NK: NDArray[np.float32]
    features_NF: NDArray[np.float32]


def write_soft_labels(path: Path, soft: SoftLabels) -> None:
    """Write soft labels as Parquet, one row a pair, with the item fields that a template may read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "query_id": [p.query.id for p in soft.pairs],
        "query": [p.query.text for p in soft.pairs],
        "locale": [p.query.locale for p in soft.pairs],
        "item_id": [str(p.item.id) for p in soft.pairs],
        "title": [p.item.title for p in soft.pairs],
        "brand": [p.item.brand for p in soft.pairs],
        "color": [p.item.color for p in soft.pairs],
        "text": [p.item.text for p in soft.pairs],
        "attributes": [json.dumps(dict(p.item.attributes), ensure_ascii=False) for p in soft.pairs],
        "probabilities": soft.probabilities_NK.tolist(),
        "features": soft.features_NF.tolist(),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_soft_labels(path: Path, n_classes: int) -> SoftLabels:
    """Read soft labels.

    Raises: InputError: if the file is not Parquet, lacks a column, or has another number of classes.
    """
    pairs, probabilities, features = [], [], []
    for number, row in parquet_rows(path, ("query", "title", "probabilities", "features")):
        pairs.append(parse_pair(row, number, path.name))
        probabilities.append(row["probabilities"])
        features.append(row["features"])
    probabilities_NK = np.asarray(probabilities, dtype=np.float32)
    if probabilities_NK.shape != (len(pairs), n_classes):
        raise InputError(f"{path}: expected {n_classes} probabilities a pair, found shape {probabilities_NK.shape}")
    return SoftLabels(pairs, probabilities_NK, np.asarray(features, dtype=np.float32))
