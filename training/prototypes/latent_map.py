"""The map from a student's latents to the places of their pairs' rationales: ridge, its strength by held-out fit.

The student stays as it is. What the map foretells of pairs it was not fitted on says how much of the rationale the
latent holds. Suffixes: N pairs, R latent width, D width of the rationale space,
S strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STRENGTHS = tuple(10.0**power for power in np.arange(-3, 3.5, 0.5))
"""Of the ridge penalty, as a multiple of the mean variance that the latents' directions have."""


@dataclass(frozen=True, slots=True)
class LatentMap:
    """latent · map_RD + offset_D is a place in the rationale space.

    Args: strength: of the penalty; foretold_ND: places of the pairs by maps fitted on the other folds; held_out_r2:
        share of the places' variance that these explain.
    """

    map_RD: Floats
    offset_D: Floats
    strength: float
    foretold_ND: Floats
    held_out_r2: float


def fit_latent_map(
    latent_NR: NDArray[np.floating],
    place_ND: Floats,
    fold_N: NDArray[np.int64],
    strengths: Sequence[float] = STRENGTHS,
) -> LatentMap:
    """Fit a map with the strength of the best held-out fit.

    Args: place_ND: centred; fold_N: fold of each pair, pairs of one query in the same.
    """
    mean_R = latent_NR.mean(axis=0, dtype=np.float64)
    centred_NR = latent_NR - mean_R
    rows_of = [fold_N == fold for fold in np.unique(fold_N)]
    grams = [(centred_NR[rows].T @ centred_NR[rows], centred_NR[rows].T @ place_ND[rows]) for rows in rows_of]
    gram_RR, product_RD = (np.sum(parts, axis=0) for parts in zip(*grams, strict=True))
    foretold_SND = np.empty((len(strengths), *place_ND.shape))
    for rows, (own_RR, own_RD) in zip(rows_of, grams, strict=True):
        for i, map_RD in enumerate(_ridge(gram_RR - own_RR, product_RD - own_RD, strengths)):
            foretold_SND[i, rows] = centred_NR[rows] @ map_RD
    lost = ((foretold_SND - place_ND) ** 2).sum(axis=(1, 2))
    best = int(lost.argmin())
    (map_RD,) = _ridge(gram_RR, product_RD, [strengths[best]])
    r2 = float(1 - lost[best] / (place_ND**2).sum())
    return LatentMap(map_RD, -mean_R @ map_RD, strengths[best], foretold_SND[best], r2)


def _ridge(gram_RR: Floats, product_RD: Floats, strengths: Sequence[float]) -> list[Floats]:
    value_R, vector_RR = np.linalg.eigh(gram_RR)
    turned_RD = vector_RR.T @ product_RD
    mean = max(float(value_R.mean()), np.finfo(np.float64).tiny)
    return [vector_RR @ (turned_RD / (np.maximum(value_R, 0) + strength * mean)[:, None]) for strength in strengths]
