"""How far probabilities can be believed. Suffixes: N pairs, K classes, M bins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """Mean forecast, share that came true and number of pairs of each non-empty bin; each of shape (M,)."""

    forecast_M: Floats
    frequency_M: Floats
    count_M: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: the count-weighted mean of |forecast - frequency|."""
        weight_M = self.count_M / self.count_M.sum()
        return float(weight_M @ np.abs(self.forecast_M - self.frequency_M))


def reliability_bins(forecast_N: Floats, happened_N: NDArray[np.bool_], n_bins: int = 15) -> ReliabilityBins:
    """Sort pairs into bins of equal mass by forecast; ties may share a bin, so none depends on row order.

    Raises: ValueError: without pairs.
    """
    if not len(forecast_N):
        raise ValueError("expected at least one pair, found none")
    edges = np.quantile(forecast_N, np.linspace(0, 1, n_bins + 1)[1:-1])
    bin_N = np.searchsorted(np.unique(edges), forecast_N, side="right")
    count = np.bincount(bin_N)
    full = count > 0
    return ReliabilityBins(
        forecast_M=np.bincount(bin_N, weights=forecast_N)[full] / count[full],
        frequency_M=np.bincount(bin_N, weights=np.asarray(happened_N, dtype=np.float64))[full] / count[full],
        count_M=count[full],
    )


def top_label_ece(probabilities_NK: Floats, label_N: Ints, n_bins: int = 15) -> float:
    """Give the expected calibration error of the predicted class's probability, over bins of equal mass."""
    predicted_N = probabilities_NK.argmax(axis=1)
    return reliability_bins(probabilities_NK.max(axis=1), predicted_N == np.asarray(label_N), n_bins).error


def classwise_ece(probabilities_NK: Floats, label_N: Ints, n_bins: int = 15) -> float:
    """Give the mean over classes of each class's calibration error (Kull et al., arXiv:1910.12656)."""
    label_N = np.asarray(label_N)
    errors = [
        reliability_bins(probabilities_NK[:, k], label_N == k, n_bins).error for k in range(probabilities_NK.shape[1])
    ]
    return float(np.mean(errors))


def brier(probabilities_NK: Floats, label_N: Ints) -> float:
    """Give the mean squared distance between probabilities and the one-hot label, summed over classes: in [0, 2]."""
    one_hot_NK = np.eye(probabilities_NK.shape[1])[np.asarray(label_N)]
    return float(np.mean(((probabilities_NK - one_hot_NK) ** 2).sum(axis=1)))
