"""Distance between two histograms over the same bins. Suffix: M bins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _shares(count_M: NDArray[np.number], floor: float) -> NDArray[np.float64]:
    shares_M: NDArray[np.float64] = np.asarray(count_M, dtype=np.float64) / max(float(np.sum(count_M)), 1.0)
    shares_M = np.maximum(shares_M, floor)
    total_M: NDArray[np.float64] = shares_M / shares_M.sum()
    return total_M


def population_stability_index(baseline_M: NDArray[np.number], current_M: NDArray[np.number]) -> float:
    """Give PSI = Σ (current - baseline) · ln(current / baseline) over shares floored at 1e-4; 0 for equal shares."""
    p_M, q_M = _shares(current_M, 1e-4), _shares(baseline_M, 1e-4)
    return float(np.sum((p_M - q_M) * np.log(p_M / q_M)))
