"""Typical rationales of a perspective: weighted k-medoids over the directions of its distinct texts.

Suffixes: N pairs, T texts, M medoids, D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_MOST_ROUNDS = 50


def choose_medoids(direction_TD: Floats, members_T: Ints, *, most: int, least_members: int) -> Ints:
    """Choose texts that stand for all of them: greedily, then by turns of assigning and moving each medoid.

    Args: direction_TD: unit rows; members_T: pairs of each text; most: medoids at most; least_members: a text with
        fewer pairs of its own is no medoid.
    Returns: texts that are medoids, ascending.
    Raises: InputError: if no text has so many pairs.
    """
    fit_T = members_T >= least_members
    if not fit_T.any():
        raise InputError(
            f"prototypes: expected a rationale that at least {least_members} pairs share, found {members_T.max()} pairs"
        )
    distance_TT = 1 - direction_TD @ direction_TD.T
    return _settled(distance_TT, members_T, _greedy(distance_TT, members_T, fit_T, most), fit_T)


def give_up_losers(medoid_M: Ints, direction_TD: Floats, row_N: Ints, foretold_ND: Floats, agreed_TT: Floats) -> Ints:
    """Leave out, the worst first, each medoid of which naming it for pairs loses against naming the most common one.

    Args: row_N: text of each pair; foretold_ND: where maps that did not see a pair put it; agreed_TT: how far the
        verdicts of two texts agree.
    Returns: the medoids that are left; the most common one always is.
    """
    members_T = np.bincount(row_N, minlength=len(direction_TD))
    while True:
        common = medoid_M[members_T[medoid_M].argmax()]
        named_N = (foretold_ND @ direction_TD[medoid_M].T).argmax(axis=1)
        gain_N = agreed_TT[medoid_M[named_N], row_N] - agreed_TT[common, row_N]
        gain_M = np.bincount(named_N, weights=gain_N, minlength=len(medoid_M))
        if gain_M.min() >= 0:
            return medoid_M
        medoid_M = np.delete(medoid_M, gain_M.argmin())


def _greedy(distance_TT: Floats, members_T: Ints, fit_T: NDArray[np.bool_], most: int) -> Ints:
    """Add the fit text that brings the pairs nearest to a medoid, one after another."""
    nearest_T = np.full(len(members_T), np.inf)
    chosen: list[int] = []
    while len(chosen) < min(most, int(fit_T.sum())):
        cost_T = np.where(fit_T, members_T @ np.minimum(nearest_T[:, None], distance_TT), np.inf)
        cost_T[chosen] = np.inf
        chosen.append(int(cost_T.argmin()))
        nearest_T = np.minimum(nearest_T, distance_TT[:, chosen[-1]])
    return np.array(sorted(chosen), dtype=np.int64)


def _settled(distance_TT: Floats, members_T: Ints, medoid_M: Ints, fit_T: NDArray[np.bool_]) -> Ints:
    """Move each medoid to the fit text that is nearest to all pairs assigned to it, until none moves."""
    for _ in range(_MOST_ROUNDS):
        place_T = distance_TT[:, medoid_M].argmin(axis=1)
        moved = []
        for place, medoid in enumerate(medoid_M.tolist()):
            own_T = np.flatnonzero(place_T == place)
            cost_T = np.where(fit_T[own_T], members_T[own_T] @ distance_TT[np.ix_(own_T, own_T)], np.inf)
            moved.append(int(own_T[cost_T.argmin()]) if fit_T[own_T].any() else medoid)
        settled_M = np.unique(np.array(moved, dtype=np.int64))
        if np.array_equal(settled_M, medoid_M):
            break
        medoid_M = settled_M
    return medoid_M
