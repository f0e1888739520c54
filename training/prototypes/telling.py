"""What of a perspective's rationales the latents can tell: clauses that held-out maps name wrongly are left out.

Texts, space, map and medoids are made anew without them, until each clause that a prototype holds is right for at least
half of the pairs it is said of. Suffixes: N pairs, T texts, M medoids, C clauses, R latent width, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.prototypes.latent_map import LatentMap, fit_latent_map
from training.prototypes.medoids import choose_medoids, give_up_losers
from training.prototypes.rationale_space import Rendered, place_texts, rendered, unit_rows
from training.prototypes.templates import Clause, Verdicts, agreement, said
from training.runs import Run

LEAST_PRECISION = 0.5
"""Share of the held-out pairs that a clause is said of for which it has to be right, at the least."""


@dataclass(frozen=True, slots=True)
class Told:
    """The prototypes of one perspective.

    Args: part: rationales without the clauses left out; place_TD: of their texts; medoid_M: texts that are prototypes;
        fitted: the map; left_out: clauses, with the precision they were left out for, 0 where no prototype held them;
        r2_of_all: held-out fit of the map before any was.
    """

    part: Rendered
    place_TD: NDArray[np.float64]
    medoid_M: NDArray[np.int64]
    fitted: LatentMap
    left_out: dict[Clause, float]
    r2_of_all: float


def tell(
    run: Run,
    perspective: str,
    verdicts_N: Sequence[Verdicts],
    latent_NR: NDArray[np.float32],
    fold_N: NDArray[np.int64],
) -> Told:
    """Leave clauses out, the worst first, and give the prototypes of what is left.

    Args: verdicts_N: the annotator's, of training pairs; fold_N: as `fit_latent_map` takes it.
    Raises: InputError: if less than two different rationales are left, or none that enough pairs share.
    """
    section = run.recipe.prototypes
    left_out: dict[Clause, float] = {}
    r2_of_all: float | None = None
    while True:
        part = rendered(perspective, [without(own, left_out) for own in verdicts_N])
        place_TD = place_texts(run, part, section.width)
        fitted = fit_latent_map(latent_NR, place_TD[part.row_N], fold_N)
        r2_of_all = fitted.held_out_r2 if r2_of_all is None else r2_of_all
        direction_TD = unit_rows(place_TD)
        agreed_TT = np.array([[agreement(one, other) for other in part.verdicts] for one in part.verdicts])
        medoid_M = choose_medoids(direction_TD, part.members_T, most=section.most, least_members=section.least_members)
        medoid_M = give_up_losers(medoid_M, direction_TD, part.row_N, fitted.foretold_ND, agreed_TT)
        named_N = medoid_M[(fitted.foretold_ND @ direction_TD[medoid_M].T).argmax(axis=1)]
        wrong = _wrong_clauses(part, named_N)
        if not wrong:
            return Told(part, place_TD, medoid_M, fitted, left_out, r2_of_all)
        left_out |= wrong


def without(verdicts: Verdicts, left_out: Mapping[Clause, float]) -> Verdicts:
    """Give the clauses of a rationale that are not left out."""
    return tuple(clause for clause in verdicts if clause not in left_out)


def _wrong_clauses(part: Rendered, named_N: NDArray[np.int64]) -> dict[Clause, float]:
    """Give the clauses that no prototype holds and, where it is too low, the one of the lowest precision."""
    clauses = sorted({clause for own in part.verdicts for clause in own})
    said_TC = said(part.verdicts, clauses)
    said_C = said_TC[named_N].sum(axis=0)
    right_C = (said_TC[named_N] & said_TC[part.row_N]).sum(axis=0) / np.maximum(said_C, 1)
    wrong = {clause: 0.0 for clause, count in zip(clauses, said_C.tolist(), strict=True) if not count}
    worst = int(np.where(said_C > 0, right_C, np.inf).argmin())
    if said_C[worst] and right_C[worst] < LEAST_PRECISION:
        wrong[clauses[worst]] = float(right_C[worst])
    return wrong
