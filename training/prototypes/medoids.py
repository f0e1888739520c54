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

    Args: direction_TD: unit rows; members_T: pairs of each text; most: medoids at most; least_members: a medoid with
        fewer pairs than this is given up, the one with the fewest first, and its texts go to their next medoid.
    Returns: texts that are medoids, ascending.
    Raises: InputError: if all texts together have fewer pairs than `least_members`.
    """
    if members_T.sum() < least_members:
        raise InputError(f"prototypes: expected at least {least_members} pairs, found {members_T.sum()}")
    distance_TT = 1 - direction_TD @ direction_TD.T
    medoid_M = _settled(distance_TT, members_T, _greedy(distance_TT, members_T, most))
    while True:
        place_T = distance_TT[:, medoid_M].argmin(axis=1)
        members_M = np.bincount(place_T, weights=members_T, minlength=len(medoid_M))
        if members_M.min() >= least_members:
            return medoid_M
        medoid_M = _settled(distance_TT, members_T, np.delete(medoid_M, members_M.argmin()))


def give_up_losers(medoid_M: Ints, direction_TD: Floats, row_N: Ints, foretold_ND: Floats, agreed_TT: Floats) -> Ints:
    """Leave out, the worst first, each medoid of which naming it for pairs loses against naming the most common one.

    Args: row_N: text of each pair; foretold_ND: where maps that did not see a pair put it; agreed_TT: how far the
        verdicts of two texts agree.
    Returns: the medoids that are left; the most common one always is.
    """
    members_T = np.bincount(row_N, minlength=len(direction_TD))
    while True:
        place_T = (direction_TD @ direction_TD[medoid_M].T).argmax(axis=1)
        common = medoid_M[np.bincount(place_T, weights=members_T, minlength=len(medoid_M)).argmax()]
        named_N = (foretold_ND @ direction_TD[medoid_M].T).argmax(axis=1)
        gain_N = agreed_TT[medoid_M[named_N], row_N] - agreed_TT[common, row_N]
        gain_M = np.bincount(named_N, weights=gain_N, minlength=len(medoid_M))
        if gain_M.min() >= 0:
            return medoid_M
        medoid_M = np.delete(medoid_M, gain_M.argmin())


def _greedy(distance_TT: Floats, members_T: Ints, most: int) -> Ints:
    """Add the text that brings the pairs nearest to a medoid, one after another."""
    nearest_T = np.full(len(members_T), np.inf)
    chosen: list[int] = []
    while len(chosen) < min(most, len(members_T)):
        cost_T = members_T @ np.minimum(nearest_T[:, None], distance_TT)
        cost_T[chosen] = np.inf
        chosen.append(int(cost_T.argmin()))
        nearest_T = np.minimum(nearest_T, distance_TT[:, chosen[-1]])
    return np.array(sorted(chosen), dtype=np.int64)


def _settled(distance_TT: Floats, members_T: Ints, medoid_M: Ints) -> Ints:
    """Move each medoid to the text that is nearest to all pairs assigned to it, until none moves."""
    for _ in range(_MOST_ROUNDS):
        place_T = distance_TT[:, medoid_M].argmin(axis=1)
        moved = []
        for place, medoid in enumerate(medoid_M.tolist()):
            own_T = np.flatnonzero(place_T == place)
            cost_T = members_T[own_T] @ distance_TT[np.ix_(own_T, own_T)]
            moved.append(int(own_T[cost_T.argmin()]) if len(own_T) else medoid)
        settled_M = np.unique(np.array(moved, dtype=np.int64))
        if np.array_equal(settled_M, medoid_M):
            break
        medoid_M = settled_M
    return medoid_M
