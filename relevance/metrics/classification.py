"""Classification measures over class indices. Suffixes: N pairs, K classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]


def confusion_matrix(label_N: Ints, predicted_N: Ints, n_classes: int) -> NDArray[np.int64]:
    """Count pairs by label (rows) and predicted class (columns); int64 of shape (K, K)."""
    flat = np.asarray(label_N, dtype=np.int64) * n_classes + np.asarray(predicted_N, dtype=np.int64)
    return np.bincount(flat, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def accuracy(label_N: Ints, predicted_N: Ints) -> float:
    """Give the share of pairs whose predicted class is the label; nan without pairs."""
    return float(np.mean(np.asarray(label_N) == np.asarray(predicted_N))) if len(label_N) else float("nan")


def per_class_f1(label_N: Ints, predicted_N: Ints, n_classes: int) -> Floats:
    """Give F1 of each class, 0 where a class is neither present nor predicted; shape (K,)."""
    matrix = confusion_matrix(label_N, predicted_N, n_classes)
    hits, total = np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1)
    f1_K: Floats = np.divide(2.0 * hits, total, out=np.zeros(n_classes), where=total > 0)
    return f1_K


def macro_f1(label_N: Ints, predicted_N: Ints, n_classes: int) -> float:
    """Give the unweighted mean of the per-class F1 over all K classes of the scheme."""
    return float(per_class_f1(label_N, predicted_N, n_classes).mean())


def auc(positive_N: NDArray[np.bool_], score_N: Floats) -> float:
    """Give the area under the ROC curve, ties counted half; nan unless both kinds are present."""
    positive_N = np.asarray(positive_N, dtype=bool)
    n_positive = int(positive_N.sum())
    n_negative = len(positive_N) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mean_rank[inverse][positive_N].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
