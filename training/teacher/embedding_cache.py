"""A cache of embeddings on disk: one SQLite file, safe to kill at any time and shared by runs.

Suffixes: N texts, D width.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relevance.errors import RunError

FILE = "embeddings.sqlite"
_ASKED_AT_ONCE = 500
_WAIT_S = 60.0


def text_key(text: str, model: str) -> str:
    """Give the key of a text under a model: SHA-256 over model and text, in hex.

    Args: model: name, revision and whatever else changes the vector.
    """
    return hashlib.sha256(f"{model}\0{text}".encode("utf-8", "replace")).hexdigest()


class EmbeddingCache:
    """Vectors by key; each `put` is one transaction, so a kill loses at most the one under way.

    Args: folder: made if it does not exist.
    Raises: RunError: if the file in it is no SQLite database.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        try:
            with closing(self._open()) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS embeddings (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise RunError(f"{self._path}: expected an embedding cache: {error}; delete it to start over") from error

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Give the vectors (D,) of those keys that are there."""
        found = {}
        with closing(self._open()) as database:
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                asked = keys[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(asked))
                rows = database.execute(f"SELECT key, vector FROM embeddings WHERE key IN ({marks})", asked)
                found.update({key: np.frombuffer(vector, dtype="<f4").astype(np.float32) for key, vector in rows})
        return found

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Store vectors (D,), all or none of them."""
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        with closing(self._open()) as database, database:
            database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_WAIT_S)
