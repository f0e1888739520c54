"""Labels that may be wrong: against the probabilities, and against the label of a near-duplicate title.

Both lists are suspects for a person to look at. The first follows confident learning (Northcutt, Jiang, Chuang:
Confident Learning, JAIR 70, 2021, arXiv:1911.00068): a row counts as class j when P(j) is at least the mean P(j) of the
rows labelled j, and is a suspect when that class is not its label. It needs probabilities of a model that has not seen
the rows' labels. Suffixes: N rows, K classes, G rows of one query, V words.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from tqdm import tqdm

from relevance.labels import LabelScheme
from training.data.near_duplicates import SIMILAR
from training.inspection.examples import Shown, spread
from training.inspection.rows import Bools, Ints, Rows

MOST_OF_A_QUERY = 4000
"""Titles of one query that are compared with each other; of a longer list the first ones."""
_BLOCK = 512
_LEAST_WORDS = 3
"""Shorter titles agree by chance."""


def confident_suspects(rows: Rows, scheme: LabelScheme, shown: Shown) -> dict[str, Any] | None:
    """Find the rows whose probabilities speak for another class than their label; None without probabilities.

    Returns: `thresholds` of the classes (None for one without rows), `joint` (the confident joint: rows by label and
        confident class), `n` suspects, and `rows` (indices, least P(label) first), each with its `likely` class.
    """
    labelled = np.flatnonzero(rows.labelled_N)
    if rows.probabilities_NK is None or not len(labelled):
        return None
    label_N, probabilities_NK = rows.label_N[labelled], rows.probabilities_NK[labelled].astype(np.float64)
    threshold_K = np.array(
        [probabilities_NK[label_N == k, k].mean() if (label_N == k).any() else np.inf for k in range(scheme.n_classes)]
    )
    likely_N, confident_N = _confident_class(probabilities_NK, threshold_K)
    joint = np.zeros((scheme.n_classes, scheme.n_classes), dtype=np.int64)
    np.add.at(joint, (label_N[confident_N], likely_N[confident_N]), 1)
    # Where the label is also the most probable class there is no case against it, whatever the thresholds say.
    suspect_N = confident_N & (likely_N != label_N) & (probabilities_NK.argmax(axis=1) != label_N)
    suspects = np.flatnonzero(suspect_N)
    own_P = probabilities_NK[suspects, label_N[suspects]]
    worst = suspects[np.argsort(own_P, kind="stable")]
    taken = spread(worst, rows.query_N[labelled], shown)
    return {
        "thresholds": [float(t) if np.isfinite(t) else None for t in threshold_K],
        "joint": joint.tolist(),
        "n": len(suspects),
        "n_queries": len(np.unique(rows.query_N[labelled][suspects])),
        "rows": [int(labelled[i]) for i in taken],
        "likely": [int(likely_N[i]) for i in taken],
    }


def duplicate_suspects(rows: Rows, scheme: LabelScheme, shown: Shown) -> dict[str, Any] | None:
    """Find pairs of near-duplicate titles of one query with different labels; None without labels.

    Titles are near-duplicates when the Jaccard similarity of their stemmed words is at least `SIMILAR`.

    Returns: `similar` (the least similarity), `n_pairs` of near-duplicates, `n_differing` of them, `pairs` (two indices
        and their similarity; the more similar and the further apart in gain first) and `n_cut`: queries of more titles
        than are compared.
    """
    if not rows.labelled_N.any():
        return None
    n_pairs = n_differing = n_cut = 0
    gain_K = scheme.gain_K
    heap: list[tuple[float, float, int, int]] = []
    for group in tqdm(list(_of_queries(rows)), unit="queries", desc="titles", disable=None):
        n_cut += len(group) > MOST_OF_A_QUERY
        first, second, similarity = near_duplicate_pairs(rows, group[:MOST_OF_A_QUERY])
        n_pairs += len(first)
        differs = rows.label_N[first] != rows.label_N[second]
        n_differing += int(differs.sum())
        gap = np.abs(gain_K[rows.label_N[first]] - gain_K[rows.label_N[second]])
        own = np.flatnonzero(differs)
        best = own[np.lexsort((second[own], first[own], -gap[own], -np.round(similarity[own], 6)))]
        for i in best[: shown.per_query].tolist():
            entry = (round(float(similarity[i]), 6), float(gap[i]), -int(first[i]), -int(second[i]))
            (heapq.heappush if len(heap) < shown.most else heapq.heappushpop)(heap, entry)
    ranked = sorted(heap, reverse=True)
    taken = spread(range(len(ranked)), np.array([rows.query_N[-pair[2]] for pair in ranked], dtype=np.int64), shown)
    return {
        "similar": SIMILAR,
        "n_pairs": n_pairs,
        "n_differing": n_differing,
        "n_cut": n_cut,
        "pairs": [{"first": -ranked[i][2], "second": -ranked[i][3], "similarity": ranked[i][0]} for i in taken],
    }


def near_duplicate_pairs(rows: Rows, group: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Give the near-duplicates among some rows: two arrays of indices, the first before the second, and similarity."""
    starts, ends = rows.word_start_N[group], rows.word_start_N[group + 1]
    group, starts, ends = (part[ends - starts >= _LEAST_WORDS] for part in (group, starts, ends))
    if len(group) < 2:
        none = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros(0)
    size_G = ends - starts
    words = np.concatenate([rows.word_M[start:end] for start, end in zip(starts, ends, strict=True)])
    _, column = np.unique(words, return_inverse=True)
    pointer = np.concatenate([[0], np.cumsum(size_G)])
    has_GV = sparse.csr_array((np.ones(len(column), dtype=np.int32), column, pointer))
    found = []
    for block in range(0, len(group), _BLOCK):
        common = (has_GV[block : block + _BLOCK] @ has_GV.T).toarray()
        union = size_G[block : block + _BLOCK, None] + size_G - common
        i, j = np.nonzero(common >= SIMILAR * union)
        later = j > i + block
        i, j = i[later], j[later]
        found.append((group[i + block], group[j], common[i, j] / union[i, j]))
    first, second, similarity = (np.concatenate(part) for part in zip(*found, strict=True))
    return first, second, similarity


def _confident_class(probabilities_NK: NDArray[np.float64], threshold_K: NDArray[np.float64]) -> tuple[Ints, Bools]:
    """Give the most probable class among those that reach their threshold, and whether there is one."""
    # The tolerance lets a class reach a mean that is its own probability, as in the authors' own library.
    reaches_NK = probabilities_NK >= threshold_K - 1e-6
    likely_N: Ints = np.where(reaches_NK, probabilities_NK, -1.0).argmax(axis=1)
    confident_N: Bools = np.asarray(reaches_NK.any(axis=1))
    return likely_N, confident_N


def _of_queries(rows: Rows) -> Iterator[Ints]:
    """Give the labelled rows of each query that has at least two."""
    labelled = np.flatnonzero(rows.labelled_N)
    order = labelled[np.argsort(rows.query_N[labelled], kind="stable")]
    ends = np.flatnonzero(np.diff(rows.query_N[order])) + 1
    for group in np.split(order, ends):
        if len(group) > 1:
            yield group
