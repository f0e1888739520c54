"""Confusions and shares, of all rows and of every locale and category; intervals take whole queries as the draws.

Suffixes: N rows, Q queries, K classes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.labels import N_TIERS, LabelScheme
from relevance.metrics.agreement import share_interval
from relevance.metrics.classification import confusion_matrix
from relevance.metrics.intervals import Interval
from training.inspection.rows import Bools, Ints, Rows

SMALL_ROWS, SMALL_QUERIES = 50, 10
"""Below either, a cell's figures are called small: its interval is wide and its order in a table mostly chance."""
_BINS = 20
Counts = NDArray[np.int64]


def overview(rows: Rows, scheme: LabelScheme, *, draws: int, seed: int) -> dict[str, Any]:
    """Give the figures of all rows; those that need labels are None without any."""
    labelled_N = rows.labelled_N
    found: dict[str, Any] = {
        "n_rows": len(rows),
        "n_queries": number_of_queries(rows.query_N),
        "n_labelled": int(labelled_N.sum()),
        "n_labelled_queries": number_of_queries(rows.query_N[labelled_N]),
        "by_tier": np.bincount(rows.tier_N, minlength=N_TIERS).tolist(),
        "kept": float(rows.kept_N.mean()),
        "scores": _histogram(rows, scheme),
        "figures": None,
        "tiers_by_label": None,
    }
    if labelled_N.any():
        label_N, tier_N = rows.label_N[labelled_N], rows.tier_N[labelled_N]
        found["tiers_by_label"] = [
            np.bincount(tier_N[label_N == k], minlength=N_TIERS).tolist() for k in range(scheme.n_classes)
        ]
        found["figures"] = _figures(rows, scheme, labelled_N, draws=draws, seed=seed)
    return found


def confusions(rows: Rows, scheme: LabelScheme, *, most_categories: int) -> dict[str, Any]:
    """Give the matrix of all rows, of each locale and category, and a line for each locale × category.

    Args: most_categories: that many with the most labelled rows stand alone, the others are taken together.
    """
    labelled_N = rows.labelled_N
    category_N, categories = _pooled_categories(rows, labelled_N, most_categories)
    cells = []
    for locale_code, locale in enumerate(rows.locales):
        for category_code, category in enumerate(categories):
            own_N = labelled_N & (rows.locale_N == locale_code) & (category_N == category_code)
            if own_N.any():
                cells.append({"locale": locale, "category": category, **cell(rows, scheme, own_N)})
    cells.sort(key=lambda row: (row["small"], -row["wrong"]))
    return {
        "all": cell(rows, scheme, labelled_N),
        "locales": [
            {"locale": name, **cell(rows, scheme, labelled_N & (rows.locale_N == code))}
            for code, name in enumerate(rows.locales)
            if (labelled_N & (rows.locale_N == code)).any()
        ],
        "categories": [
            {"category": name, **cell(rows, scheme, labelled_N & (category_N == code))}
            for code, name in enumerate(categories)
            if len(categories) > 1
        ],
        "cells": cells,
    }


def cell(rows: Rows, scheme: LabelScheme, own_N: Bools) -> dict[str, Any]:
    """Give the figures of some labelled rows."""
    label_N, predicted_N, query_N = rows.label_N[own_N], rows.predicted_N[own_N], rows.query_N[own_N]
    matrix = confusion_matrix(label_N, predicted_N, scheme.n_classes)
    wrong = matrix - np.diag(np.diag(matrix))
    at = np.unravel_index(int(wrong.argmax()), wrong.shape)
    n_queries = number_of_queries(query_N)
    return {
        "n_rows": len(label_N),
        "n_queries": n_queries,
        "small": len(label_N) < SMALL_ROWS or n_queries < SMALL_QUERIES,
        "matrix": matrix.tolist(),
        "wrong": int(wrong.sum()),
        "accuracy": asdict(share_of_queries(label_N == predicted_N, query_N)),
        "macro_f1": _macro_f1(matrix) if (matrix.sum(axis=1) > 0).all() else None,
        "false_filter": rate(~rows.kept_N[own_N], label_N == scheme.exact, query_N),
        "leak": rate(rows.kept_N[own_N], label_N == scheme.irrelevant, query_N),
        "commonest": {"label": int(at[0]), "predicted": int(at[1]), "n": int(wrong.max())} if wrong.any() else None,
    }


def rate(event_N: Bools, among_N: Bools, query_N: Ints) -> dict[str, Any]:
    """Give the share of events among some rows with its interval, and how many rows these are."""
    n = int(among_N.sum())
    interval = share_of_queries(event_N[among_N], query_N[among_N]) if n else Interval(*[float("nan")] * 3)
    return {"n": n, "events": int(event_N[among_N].sum()), **asdict(interval)}


def share_of_queries(hit_N: Bools, query_N: Ints) -> Interval:
    """Give the share of rows that are hits, with the Wilson interval of `share_interval`.

    Where all rows are hits, or none, nothing tells how alike a query's rows are, and each query counts once.
    """
    total_Q = np.bincount(query_N)
    hit_Q = np.bincount(query_N, weights=hit_N, minlength=len(total_Q)).astype(np.int64)
    hit_Q, total_Q = hit_Q[total_Q > 0], total_Q[total_Q > 0]
    if hit_Q.sum() in {0, total_Q.sum()}:
        hit_Q, total_Q = np.minimum(hit_Q, 1), np.minimum(total_Q, 1)
    return share_interval(hit_Q, total_Q)


def number_of_queries(query_N: Ints) -> int:
    """Count the queries among some rows."""
    return int(np.count_nonzero(np.bincount(query_N))) if len(query_N) else 0


def bootstrap(matrix_QKK: Counts, *, draws: int, seed: int) -> dict[str, Interval]:
    """Give accuracy and macro-F1 with 95 % percentile intervals over draws of whole queries.

    A draw only adds up the queries' matrices, so a million rows take seconds; the draws are those of
    `relevance.metrics.intervals.query_bootstrap`, queries in the order given.
    """
    rng = np.random.default_rng(seed)
    n_queries, n_classes = len(matrix_QKK), matrix_QKK.shape[1]
    flat_QF = matrix_QKK.reshape(n_queries, -1)
    drawn = []
    for _ in range(draws):
        times_Q = np.bincount(rng.integers(0, n_queries, n_queries), minlength=n_queries)
        matrix = (times_Q @ flat_QF).reshape(n_classes, n_classes)
        drawn.append((_accuracy(matrix), _macro_f1(matrix)))
    whole = matrix_QKK.sum(axis=0)
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    return {
        "accuracy": Interval(_accuracy(whole), float(low[0]), float(high[0])),
        "macro_f1": Interval(_macro_f1(whole), float(low[1]), float(high[1])),
    }


def _figures(rows: Rows, scheme: LabelScheme, labelled_N: Bools, *, draws: int, seed: int) -> dict[str, Any]:
    n_classes = scheme.n_classes
    label_N, predicted_N = rows.label_N[labelled_N], rows.predicted_N[labelled_N]
    _, inverse_N = np.unique(rows.query_N[labelled_N], return_inverse=True)
    n_queries = int(inverse_N.max()) + 1
    flat_N = (inverse_N * n_classes + label_N) * n_classes + predicted_N
    matrix_QKK = np.bincount(flat_N, minlength=n_queries * n_classes**2).reshape(n_queries, n_classes, n_classes)
    share_K = np.bincount(label_N, minlength=n_classes) / len(label_N)
    common = int(share_K.argmax())
    p = float(share_K[common])
    return {
        **{name: asdict(interval) for name, interval in bootstrap(matrix_QKK, draws=draws, seed=seed).items()},
        "false_filter": rate(~rows.kept_N[labelled_N], label_N == scheme.exact, rows.query_N[labelled_N]),
        "leak": rate(rows.kept_N[labelled_N], label_N == scheme.irrelevant, rows.query_N[labelled_N]),
        "always": {"label": common, "accuracy": p, "macro_f1": 2 * p / ((1 + p) * n_classes)},
    }


def _histogram(rows: Rows, scheme: LabelScheme) -> dict[str, Any]:
    """Count scores in bins of equal width, for each label and for rows without one."""
    edges = np.linspace(0, 1, _BINS + 1)
    codes = [*range(scheme.n_classes), -1]
    counts = [np.histogram(rows.score_N[rows.label_N == code], edges)[0].tolist() for code in codes]
    return {"edges": edges.round(6).tolist(), "by_label": counts[:-1], "unlabelled": counts[-1]}


def _pooled_categories(rows: Rows, labelled_N: Bools, most: int) -> tuple[Ints, list[str]]:
    """Number the categories anew, the commonest first, all beyond `most` as one; rows without any are one too."""
    count = np.bincount(rows.category_N[labelled_N], minlength=len(rows.categories))
    order = [int(code) for code in np.argsort(-count, kind="stable") if count[code]]
    own, pooled = order[:most], order[most:]
    new = np.full(len(rows.categories), len(own), dtype=np.int64)
    new[own] = np.arange(len(own))
    names = [rows.categories[code] or "(no category)" for code in own]
    return new[rows.category_N], [*names, f"(the other {len(pooled)})"] if pooled else names


def _accuracy(matrix: Counts) -> float:
    return float(np.trace(matrix) / matrix.sum()) if matrix.sum() else float("nan")


def _macro_f1(matrix: Counts) -> float:
    hits, total = np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1)
    return float(np.divide(2.0 * hits, total, out=np.zeros(len(matrix)), where=total > 0).mean())
