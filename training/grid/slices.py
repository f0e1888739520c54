"""The slices of a grid's test pairs, and each system's figures on them, on all queries and on each bootstrap draw.

Suffixes: N pairs, S seeds, Q queries, K classes, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from relevance.calibration import expected_gain, softmax
from relevance.labels import LabelScheme
from relevance.metrics import classification, ranking, reliability
from training.grid import statistics
from training.grid.fits import System
from training.grid.statistics import Counts, Sample
from training.measures import RANKING_DEPTH, complete_lists
from training.predictions import Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Figures = dict[str, Floats]

WEIGHTED = "macro_f1_weighted"
"""Macro-F1 of the class named by label weights that were fitted on dev; the draws leave the weights as they are."""
MAIN = "main"
"""Source of the pairs that the primary figures are of, where a data set names one."""
AUC_DRAWS = 1000
"""An area needs a pass over all pairs a draw, so it gets the first draws only."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the test pairs.

    Args: kind: what it is a slice by; rows: indices into the test pairs; query_N: index of each row's query, 0 to
        Q - 1; ranked_Q: the rows of each complete judgement list, None for a query without one.
    """

    name: str
    kind: Literal["primary", "source", "locale"]
    rows: Ints
    label_N: Ints
    query_N: Ints
    item_N: NDArray[np.str_]
    ranked_Q: tuple[Ints | None, ...]

    @property
    def n_queries(self) -> int:
        """Number of queries, Q."""
        return len(self.ranked_Q)


def slices_of(pairs: Predictions) -> list[Slice]:
    """Give the primary slice, then one a source and, within the primary one, one a locale, where there are several.

    The primary slice is the source `main`, or every pair outside the Exact-only sources where no source is called so.
    Sources that hold only one class, and slices of fewer than two queries, cannot be judged and are left out.
    """
    main = pairs.source == MAIN
    primary = main if main.any() else ~pairs.exact_only
    ranked = complete_lists(pairs.query_id, pairs.source, pairs.exact_only)
    masks: list[tuple[str, Literal["primary", "source", "locale"], Bools]] = [
        (MAIN if main.any() else "without Exact-only sources", "primary", primary)
    ]
    sources, locales = np.unique(pairs.source).tolist(), np.unique(pairs.locale[primary]).tolist()
    if len(sources) > 1:
        masks += [(s, "source", pairs.source == s) for s in sources if s != MAIN]
    if len(locales) > 1:
        masks += [(name or "unknown", "locale", primary & (pairs.locale == name)) for name in locales]
    found = [_slice(pairs, name, kind, np.flatnonzero(mask), ranked) for name, kind, mask in masks]
    return [s for s in found if s.n_queries > 1 and (s.kind != "source" or len(np.unique(s.label_N)) > 1)]


def sample(system: System, part: Slice, scheme: LabelScheme, count_DQ: Counts, *, areas: bool) -> Sample:
    """Give a system's figures on a slice.

    Args: system: with at least one finished run; count_DQ: draws of the slice's queries; areas: also draw the AUCs.
    Returns: classes are the arg-max of the raw logits, rankings go by the expected gain of their softmax; one more
        macro-F1, `WEIGHTED`, is of classes named as a service names them, nan without weights.
    """
    logits_SNK = system.logits_SNK[:, part.rows]
    raw_SNK = softmax(logits_SNK)
    value, drawn = _named(logits_SNK.argmax(axis=2), part, scheme, count_DQ)
    if np.isfinite(system.weight_SK).all():
        weighted = _named((raw_SNK * system.weight_SK[:, None]).argmax(axis=2), part, scheme, count_DQ)
        value[WEIGHTED], drawn[WEIGHTED] = (figures["macro_f1"] for figures in weighted)
    else:
        value[WEIGHTED] = np.full(len(logits_SNK), np.nan)
    ndcg_SQ = np.array([_ndcg(raw_NK, part, scheme) for raw_NK in raw_SNK])
    whole_Q = np.ones((1, part.n_queries), dtype=np.uint8)
    value["ndcg_10"] = statistics.draw_means(ndcg_SQ, whole_Q)[0]
    drawn["ndcg_10"] = statistics.draw_means(ndcg_SQ, count_DQ)
    for name, k in (("auc_exact", scheme.exact), ("auc_irrelevant", scheme.irrelevant)):
        positive_N = part.label_N == k
        value[name] = np.array([classification.auc(positive_N, raw_NK[:, k]) for raw_NK in raw_SNK])
        if areas:
            draws = [
                statistics.draw_auc(positive_N, raw_NK[:, k], part.query_N, count_DQ[:AUC_DRAWS]) for raw_NK in raw_SNK
            ]
            drawn[name] = np.stack(draws, axis=1)
    value["ece"] = np.array([reliability.top_label_ece(raw_NK, part.label_N) for raw_NK in raw_SNK])
    value["brier"] = np.array([reliability.brier(raw_NK, part.label_N) for raw_NK in raw_SNK])
    queries = dict.fromkeys(drawn, part.n_queries) | {"ndcg_10": int((~np.isnan(ndcg_SQ)).any(axis=0).sum())}
    return Sample(system.seeds, system.constant, value, drawn, queries)


def commonest_class(label_N: Ints, scheme: LabelScheme) -> dict[str, str | float]:
    """Give what naming the commonest class for every pair is worth: accuracy p and macro-F1 2p / ((1 + p) K)."""
    share_K = np.bincount(label_N, minlength=scheme.n_classes) / len(label_N)
    p = float(share_K.max())
    title = scheme.titles[int(share_K.argmax())]
    return {"title": title, "accuracy": p, "macro_f1": 2 * p / ((1 + p) * scheme.n_classes)}


def _slice(
    pairs: Predictions, name: str, kind: Literal["primary", "source", "locale"], rows: Ints, ranked: Bools
) -> Slice:
    queries, query_N = np.unique(pairs.query_id[rows], return_inverse=True)
    by_query = np.split(np.argsort(query_N, kind="stable"), np.cumsum(np.bincount(query_N))[:-1])
    of_rows = ranked[rows]
    return Slice(
        name=name,
        kind=kind,
        rows=rows,
        label_N=pairs.label[rows],
        query_N=query_N.astype(np.int64),
        item_N=pairs.item_id[rows],
        ranked_Q=tuple(own if of_rows[own].all() else None for own in by_query[: len(queries)]),
    )


def _named(predicted_SN: Ints, part: Slice, scheme: LabelScheme, count_DQ: Counts) -> tuple[Figures, Figures]:
    """Give what named classes are worth, on all queries and on each draw."""
    count_SQKK = statistics.confusion_by_query(part.label_N, predicted_SN, part.query_N, n_classes=scheme.n_classes)
    drawn = statistics.confusion_figures(statistics.draw_confusions(count_SQKK, count_DQ), scheme.classes)
    return statistics.confusion_figures(count_SQKK.sum(axis=1), scheme.classes), drawn


def _ndcg(raw_NK: Floats, part: Slice, scheme: LabelScheme) -> Floats:
    """Give nDCG@10 of each query, nan where it has no complete list or nothing to gain; shape (Q,)."""
    score_N, gain_N = expected_gain(raw_NK, scheme), scheme.gain_K[part.label_N]
    return np.array(
        [
            float("nan") if own is None else ranking.ndcg(gain_N[own], score_N[own], part.item_N[own], RANKING_DEPTH)
            for own in part.ranked_Q
        ]
    )
