"""The majority baseline: every pair gets the class shares of train, whatever its words.

Suffixes: N pairs, K classes.
"""

from __future__ import annotations

import numpy as np

from relevance.errors import InputError
from training.baselines.score_map import LOG_FLOOR, Floats, labelled_splits
from training.recipe import Split
from training.runs import Run


def predict_all(run: Run) -> dict[Split, Floats]:
    """Give the log class shares of train, without its exact-only sources, as the logits of every other pair.

    Raises: InputError: if train holds no pair to count; RunError: if the data stage has not finished.
    """
    scheme, pairs = run.recipe.label_scheme, labelled_splits(run)
    label_N = np.array([scheme.index(p.label) for p in pairs["train"] if not p.exact_only], dtype=np.int64)
    if not len(label_N):
        raise InputError("majority: expected train pairs from more than exact-only sources, found none")
    share_K = np.bincount(label_N, minlength=scheme.n_classes) / len(label_N)
    logit_K = np.log(np.maximum(share_K, np.exp(LOG_FLOOR)))
    return {split: np.tile(logit_K, (len(rows), 1)) for split, rows in pairs.items() if split != "train"}
