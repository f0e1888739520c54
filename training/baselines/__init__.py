"""Systems that train no student: what every figure of a trained one has to be held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError
from training.baselines import bi_encoder, lexical, majority
from training.baselines.ensemble import average
from training.recipe import Split
from training.runs import Run

__all__ = ["BASELINES", "average", "predict_baseline"]

BASELINES: Mapping[str, Callable[[Run], dict[Split, NDArray[np.float64]]]] = MappingProxyType(
    {
        "majority": majority.predict_all,
        "bm25": lexical.predict_bm25,
        "tfidf": lexical.predict_tfidf,
        "bi_encoder": bi_encoder.predict_all,
        "lexical": lexical.predict_overlap,
    }
)


def predict_baseline(name: str, run: Run) -> dict[Split, NDArray[np.float64]]:
    """Give a baseline's logits of dev, cal and test, each of shape (N, K) in the order of its pairs file.

    Args: name: a key of `BASELINES`; run: its data stage has finished.
    Raises: InputError: if there is no such baseline or train holds fewer than two classes; RunError: if the data stage
        has not finished.
    """
    if name not in BASELINES:
        raise InputError(f"expected a baseline of {', '.join(BASELINES)}, found {name!r}")
    return BASELINES[name](run)
