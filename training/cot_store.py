"""The store of CoT embeddings: one matrix and the index of its rows by pair and perspective.

Suffixes: N rows, B pairs, P perspectives, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relevance.errors import RunError

MATRIX = "embeddings.npy"
INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class CotStore:
    """L2-normalised CoT embeddings.

    Args: perspectives: order of the P axis; embedding_ND: float32; row_of: (pair id, perspective) → row;
        model: name and revision of the encoder that made them.
    """

    perspectives: tuple[str, ...]
    embedding_ND: NDArray[np.float32]
    row_of: dict[tuple[str, str], int]
    model: str

    @property
    def width(self) -> int:
        """Width D of an embedding."""
        return int(self.embedding_ND.shape[1])

    def lookup(self, pair_ids: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Give the embeddings of B pairs and a mask that is False where a perspective is missing.

        Returns: float32 of shape (B, P, D), zeros where missing, and bool of shape (B, P).
        """
        row_BP = np.array([[self.row_of.get((pair, p), -1) for p in self.perspectives] for pair in pair_ids]).reshape(
            len(pair_ids), len(self.perspectives)
        )
        mask_BP = row_BP >= 0
        embedding_BPD = self.embedding_ND[np.where(mask_BP, row_BP, 0)] * mask_BP[:, :, None].astype(np.float32)
        return embedding_BPD, mask_BP

    def save(self, folder: Path) -> None:
        """Write the store into a folder."""
        np.save(folder / MATRIX, self.embedding_ND)
        rows = [[pair, perspective, row] for (pair, perspective), row in self.row_of.items()]
        index = {"perspectives": self.perspectives, "model": self.model, "rows": rows}
        (folder / INDEX).write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CotStore:
        """Read a store from a folder.

        Raises: RunError: if files are missing or disagree.
        """
        try:
            matrix = np.load(folder / MATRIX, allow_pickle=False)
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{folder}: expected {MATRIX} and {INDEX}: {error}") from error
        row_of = {(pair, perspective): row for pair, perspective, row in index["rows"]}
        if row_of and max(row_of.values()) >= len(matrix):
            raise RunError(f"{folder}: expected at least {max(row_of.values()) + 1} embeddings, found {len(matrix)}")
        return cls(tuple(index["perspectives"]), matrix, row_of, index["model"])
