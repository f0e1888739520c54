"""Pairs of ours: one `.jsonl` or `.parquet` file of labelled pairs, the format every stage reads."""

from __future__ import annotations

from pathlib import Path

from relevance.labels import LabelScheme
from relevance.pairs import BadRows, numbered_labelled_pairs
from training.data.rows import SourcedPair, each_pair_once
from training.recipe import DataRecipe


def source_files(recipe: DataRecipe) -> list[Path]:
    """Name the files this source reads."""
    return [Path(recipe.path)]


def read_pairs(recipe: DataRecipe, scheme: LabelScheme, bad_rows: BadRows) -> list[SourcedPair]:
    """Read the labelled pairs; the format has no split of its own.

    Raises: InputError: if the file is missing or lacks a column; RowError: as `bad_rows` says.
    """
    path = Path(recipe.path)
    numbered = ((number, SourcedPair(pair)) for number, pair in numbered_labelled_pairs(path, scheme, bad_rows))
    return list(each_pair_once(numbered, path.name, bad_rows))
