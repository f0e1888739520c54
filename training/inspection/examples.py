"""The mistakes to read first: the most expensive ones, and not all of them from one query. Suffix: N rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from relevance.labels import LabelScheme
from training.inspection.rows import Bools, Floats, Ints, Rows

_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True, slots=True)
class Shown:
    """How much a list shows.

    Args: most: rows of a list; per_query: rows of one query in a list.
    """

    most: int
    per_query: int


def worst(rows: Rows, scheme: LabelScheme, shown: Shown) -> list[dict[str, Any]]:
    """Give the lists of mistakes, the most expensive kind first.

    Returns: of each list: `kind`, `n` (rows of that kind), `n_queries`, and `rows` (indices, worst first).
    """
    label_N, labelled_N = rows.label_N, rows.labelled_N
    loss_N = log_loss(rows)
    lost_N = labelled_N & (label_N == scheme.exact) & ~rows.kept_N
    leaked_N = labelled_N & (label_N == scheme.irrelevant) & rows.kept_N
    gap_N = tier_gap(rows, scheme)
    wrong_N = labelled_N & (gap_N > 0) & ~lost_N & ~leaked_N
    return [
        _list("lost", rows, lost_N, np.lexsort((rows.score_N, rows.tier_N)), shown),
        _list("leaked", rows, leaked_N, np.lexsort((-rows.score_N, -rows.tier_N)), shown),
        _list("other", rows, wrong_N, np.lexsort((-loss_N, -gap_N)), shown),
    ]


def spread(order: Iterable[int], query_N: Ints, shown: Shown) -> list[int]:
    """Take from the front, at most so many of one query."""
    taken: list[int] = []
    of_query: Counter[int] = Counter()
    for row in order:
        query = int(query_N[row])
        if of_query[query] < shown.per_query:
            of_query[query] += 1
            taken.append(int(row))
            if len(taken) == shown.most:
                break
    return taken


def log_loss(rows: Rows) -> Floats:
    """Give -ln P(label) of each row; where probabilities are unknown 0 for a right class and 1 for a wrong one."""
    if rows.probabilities_NK is None:
        wrong_N: Floats = (rows.predicted_N != rows.label_N).astype(np.float64)
        return wrong_N
    own_N = rows.probabilities_NK[np.arange(len(rows)), np.maximum(rows.label_N, 0)]
    loss_N: Floats = -np.log(np.maximum(own_N.astype(np.float64), _LEAST_PROBABILITY))
    return loss_N


def tier_gap(rows: Rows, scheme: LabelScheme) -> Ints:
    """Give how many tiers lie between the tier given and the one that the label stands for."""
    gap_N: Ints = np.abs(rows.tier_N - np.asarray(scheme.tiers)[np.maximum(rows.label_N, 0)])
    return gap_N


def _list(kind: str, rows: Rows, own_N: Bools, order: Ints, shown: Shown) -> dict[str, Any]:
    return {
        "kind": kind,
        "n": int(own_N.sum()),
        "n_queries": len(np.unique(rows.query_N[own_N])),
        "rows": spread(order[own_N[order]], rows.query_N, shown),
    }
