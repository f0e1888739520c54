"""From a few scores a pair to class probabilities: the one fitted part of the baselines.

Suffixes: N pairs, F scores of a pair, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from relevance.errors import InputError
from relevance.pairs import LabelledPair, read_labelled_pairs
from training.recipe import SPLITS, Recipe, Split
from training.runs import Run

Floats = NDArray[np.float64]
LOG_FLOOR = -20.0
"""Log-probability of a class that the fit has not seen."""


def labelled_splits(run: Run) -> dict[Split, list[LabelledPair]]:
    """Read the labelled pairs of every split.

    Raises: RunError: if the data stage has not finished.
    """
    data, scheme = run.require("data"), run.recipe.label_scheme
    return {split: read_labelled_pairs(data / f"pairs.{split}.parquet", scheme) for split in SPLITS}


def fit_score_map(features_NF: Floats, pairs: Sequence[LabelledPair], recipe: Recipe) -> Pipeline:
    """Fit a multinomial logistic regression on standardised scores, weighted as the recipe weights a student's loss.

    Args: features_NF: of the pairs; pairs: those of exact-only sources are left out; recipe: its
        `student.class_weights` and `student.query_weights` hold here too, so that no system is favoured by weights.
    Raises: InputError: if fewer than two classes are left.
    """
    scheme, student = recipe.label_scheme, recipe.student
    usable_N = np.array([not p.exact_only for p in pairs], dtype=bool)
    label_N = np.array([scheme.index(p.label) for p in pairs], dtype=np.int64)[usable_N]
    query_N = np.array([p.pair.query.id for p in pairs], dtype=np.str_)[usable_N]
    classes, class_of_N, class_counts = np.unique(label_N, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"baseline: expected pairs of two classes or more to fit on, found {len(classes)}")
    _, query_of_N, query_counts = np.unique(query_N, return_inverse=True, return_counts=True)
    weight_N = np.ones(len(label_N))
    if student.query_weights == "sqrt_inverse":
        weight_N *= query_counts[query_of_N] ** -0.5
    if student.class_weights == "sqrt_inverse":
        weight_N *= class_counts[class_of_N] ** -0.5
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features_NF[usable_N], label_N, logisticregression__sample_weight=weight_N / weight_N.mean())
    return model


def map_scores(model: Pipeline, features_NF: Floats, n_classes: int) -> Floats:
    """Give log-probabilities of shape (N, K), floored at `LOG_FLOOR`, also for classes that the fit lacked."""
    logits_NK = np.full((len(features_NF), n_classes), LOG_FLOOR)
    if len(features_NF):
        logits_NK[:, model.classes_] = np.maximum(model.predict_log_proba(features_NF), LOG_FLOOR)
    return logits_NK
