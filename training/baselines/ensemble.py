"""The averaging ensemble (Avg Ensemble of arXiv:2601.21611, which leaves its members open): several fits, one mean.

Suffixes: M members, N pairs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import log_softmax, logsumexp

from relevance.errors import InputError
from training.baselines.score_map import LOG_FLOOR, Floats
from training.predictions import read_predictions
from training.recipe import SPLITS, Split


def average(folders: Sequence[Path], splits: Sequence[Split] = SPLITS[1:]) -> dict[Split, Floats]:
    """Give the log of the mean softmax of several fits, of each split, each of shape (N, K).

    Args: folders: each holds the predictions.SPLIT.parquet of one fit; splits: that fits of the recipe predict.
    Raises: InputError: if there are no folders, a file is missing, or two fits scored other pairs.
    """
    if not folders:
        raise InputError("ensemble: expected folders of fits to average, found none")
    return {split: _average_split(folders, split) for split in splits}


def _average_split(folders: Sequence[Path], split: Split) -> Floats:
    paths = [folder / f"predictions.{split}.parquet" for folder in folders]
    members = [read_predictions(path) for path in paths]
    for path, member in zip(paths, members, strict=True):
        if not np.array_equal(member.pair_id, members[0].pair_id):
            raise InputError(f"{path}: expected the same pairs in the same order as {paths[0]}, found others")
    if not len(members[0]):
        return np.zeros((0, 0))
    log_probabilities_MNK = log_softmax(np.stack([member.logits_NK for member in members]), axis=2)
    mean_NK = logsumexp(log_probabilities_MNK, axis=0) - np.log(len(members))
    return np.maximum(np.asarray(mean_NK, dtype=np.float64), LOG_FLOOR)
