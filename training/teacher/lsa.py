"""A bag-of-words rationale encoder without weights to fetch: TF-IDF and a truncated SVD (latent semantic analysis).

It is the contrast of the rationale-encoder sweep: what a sentence encoder adds over the words themselves.
Suffixes: N texts, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from relevance.errors import RecipeError

PREFIX = "lsa:"
_SEED = 0


class LsaEncoder:
    """TF-IDF of the texts it is fitted on, reduced to a width (Deerwester et al., JASIS 1990).

    Args: name: `lsa:WIDTH`; texts: to fit on.
    Raises: RecipeError: if the name has no width, or the texts have too few distinct words for it.
    """

    def __init__(self, name: str, texts: Sequence[str]) -> None:
        width = name.removeprefix(PREFIX)
        if not width.isdecimal() or int(width) < 1:
            raise RecipeError(f"embed.model: expected {PREFIX}WIDTH, found {name!r}")
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:16]
        self.model = f"{name}@{digest}"
        svd = TruncatedSVD(int(width), random_state=_SEED)
        self._pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), svd)
        try:
            self._pipeline.fit(list(texts))
        except ValueError as error:
            raise RecipeError(f"embed.model: expected more words than {width} dimensions: {error}") from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give L2-normalised vectors, float32 of shape (N, D); of a text without a known word, zeros."""
        vectors_ND = self._pipeline.transform(list(texts)).astype(np.float32)
        norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        unit_ND: NDArray[np.float32] = vectors_ND / np.maximum(norms_N1, 1e-12)
        return unit_ND
