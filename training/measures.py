"""Every figure of the report, from scored pairs: pure functions, no file is read here.

Suffixes: N pairs, K classes, G candidate cut points.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.labels import N_TIERS, LabelScheme
from relevance.metrics import classification, ranking, reliability
from relevance.metrics.intervals import Interval, query_bootstrap_many, with_rare_events
from training.cut_points import GRID

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Strings = NDArray[np.str_]

RANKING_DEPTH = 10
COMPLETE_LIST = 10
"""A query's candidates count as a judgement list from this many on."""
COMPLETE_SOURCES = ("us_judgments_joined",)
"""Sources that judged whole result lists; where a split holds any of them, only they count for ranking."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What one scorer says of N labelled pairs.

    Args: raw_NK: softmax of the logits; probabilities_NK: calibrated (equal to raw without a calibrator);
        predicted: the class named, by the policy's label weights; score: expected gain; tier, kept: of the policy;
        kept_at_worst, kept_at_best: what business rules alone decide; policy_locale: as the policy resolves it;
        ranked: the query's list is complete enough for ranking measures.
    """

    query_id: Strings
    item_id: Strings
    policy_locale: Strings
    label: Ints
    predicted: Ints
    exact_only: Bools
    raw_NK: Floats
    probabilities_NK: Floats
    score: Floats
    tier: Ints
    kept: Bools
    kept_at_worst: Bools
    kept_at_best: Bools
    ranked: Bools

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, chosen: Bools | Ints) -> Scored:
        """Give some of the rows, by mask or by index."""
        return Scored(**{name: getattr(self, name)[chosen] for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Settings of the query bootstrap."""

    draws: int = 1000
    confidence: float = 0.95
    seed: int = 0


def complete_lists(query_id: Strings, source: Strings, exact_only: Bools) -> Bools:
    """Mark the pairs of complete judgement lists: ≥ 10 candidates, from a source that judges lists if there is one.

    Args: exact_only: pairs of sources that hold only the most relevant class, which make no list.
    """
    of_lists = np.isin(source, COMPLETE_SOURCES)
    listed = (of_lists if of_lists.any() else np.ones(len(source), dtype=bool)) & ~exact_only
    _, inverse = np.unique(query_id, return_inverse=True)
    complete: Bools = listed & (np.bincount(inverse, listed)[inverse] >= COMPLETE_LIST)
    return complete


def class_figures(scored: Scored, scheme: LabelScheme) -> dict[str, float]:
    """Give what the predicted classes and the order of pairs are worth."""
    predicted_N, n_classes = scored.predicted, scheme.n_classes
    exact, irrelevant = scored.label == scheme.exact, scored.label == scheme.irrelevant
    f1_K = classification.per_class_f1(scored.label, predicted_N, n_classes)
    return {
        "accuracy": classification.accuracy(scored.label, predicted_N),
        "macro_f1": float(f1_K.mean()),
        "macro_f1_uncalibrated": classification.macro_f1(scored.label, scored.raw_NK.argmax(axis=1), n_classes),
        **{f"f1_{code}": float(f1) for code, f1 in zip(scheme.classes, f1_K, strict=True)},
        "auc_exact": classification.auc(exact, scored.probabilities_NK[:, scheme.exact]),
        "auc_irrelevant": classification.auc(irrelevant, scored.probabilities_NK[:, scheme.irrelevant]),
        "false_filter_rate": _share(~scored.kept, exact),
        "leak_rate": _share(scored.kept, irrelevant),
    }


def probability_figures(scored: Scored) -> dict[str, float]:
    """Give how far the probabilities can be believed, calibrated and not."""
    return {
        "ece": reliability.top_label_ece(scored.probabilities_NK, scored.label),
        "ece_uncalibrated": reliability.top_label_ece(scored.raw_NK, scored.label),
        "classwise_ece": reliability.classwise_ece(scored.probabilities_NK, scored.label),
        "classwise_ece_uncalibrated": reliability.classwise_ece(scored.raw_NK, scored.label),
        "brier": reliability.brier(scored.probabilities_NK, scored.label),
        "brier_uncalibrated": reliability.brier(scored.raw_NK, scored.label),
    }


def ranking_figures(scored: Scored, scheme: LabelScheme) -> dict[str, Floats]:
    """Give nDCG@10 and average precision of each ranked query, at its first row; nan on every other row."""
    gain_N = scheme.gain_K[scored.label]
    values = {name: np.full(len(scored), np.nan) for name in ("ndcg_10", "map")}
    rows = np.flatnonzero(scored.ranked)
    _, inverse = np.unique(scored.query_id[rows], return_inverse=True)
    for q in range(int(inverse.max(initial=-1)) + 1):
        own = rows[inverse == q]
        score, items = scored.score[own], scored.item_id[own]
        values["ndcg_10"][own[0]] = ranking.ndcg(gain_N[own], score, items, RANKING_DEPTH)
        values["map"][own[0]] = ranking.average_precision(scored.label[own] == scheme.exact, score, items)
    return values


def figures_with_intervals(scored: Scored, scheme: LabelScheme, bootstrap: Bootstrap) -> dict[str, Interval]:
    """Give all figures with query-bootstrap intervals."""
    ranked = ranking_figures(scored, scheme)

    def measures(rows: Ints) -> dict[str, float]:
        drawn = scored.rows(rows)
        lists = {name: _nanmean(values[rows]) for name, values in ranked.items()}
        return class_figures(drawn, scheme) | probability_figures(drawn) | lists

    intervals = query_bootstrap_many(
        scored.query_id, measures, confidence=bootstrap.confidence, draws=bootstrap.draws, seed=bootstrap.seed
    )
    among = {
        "accuracy": np.ones(len(scored), dtype=bool),
        "false_filter_rate": scored.label == scheme.exact,
        "leak_rate": scored.label == scheme.irrelevant,
    }
    for name, among_N in among.items():
        n_queries = len(np.unique(scored.query_id[among_N]))
        intervals[name] = with_rare_events(intervals[name], n_queries, confidence=bootstrap.confidence)
    return intervals


def paired_figures(
    ours: Scored, theirs: Scored, scheme: LabelScheme, *, names: tuple[str, ...], bootstrap: Bootstrap
) -> dict[str, dict[str, float]]:
    """Give the differences ours - theirs from the same draws of queries.

    Args: ours, theirs: the same pairs in the same order; names: of class and ranking figures.
    Returns: by name: ours, theirs, difference and the ends of its interval.
    """
    sides = [(scored, ranking_figures(scored, scheme)) for scored in (ours, theirs)]

    def both(rows: Ints) -> list[dict[str, float]]:
        return [
            class_figures(scored.rows(rows), scheme) | {n: _nanmean(values[rows]) for n, values in ranked.items()}
            for scored, ranked in sides
        ]

    def difference(rows: Ints) -> dict[str, float]:
        a, b = both(rows)
        return {name: a[name] - b[name] for name in names}

    intervals = query_bootstrap_many(
        ours.query_id, difference, confidence=bootstrap.confidence, draws=bootstrap.draws, seed=bootstrap.seed
    )
    a, b = both(np.arange(len(ours)))
    return {
        name: {"ours": a[name], "theirs": b[name], "difference": i.value, "low": i.low, "high": i.high}
        for name, i in intervals.items()
    }


def always_most_relevant(label_N: Ints, scheme: LabelScheme) -> dict[str, float]:
    """Give accuracy p and macro-F1 2p / ((1 + p) K) of answering the most relevant class to every pair."""
    p = float(np.mean(label_N == scheme.exact))
    return {"accuracy": p, "macro_f1": 2 * p / ((1 + p) * scheme.n_classes)}


def view(scored: Scored, scheme: LabelScheme, bootstrap: Bootstrap) -> dict[str, Any]:
    """Give everything the report says of one set of pairs, as plain data."""
    tier_K = [np.bincount(scored.tier[scored.label == k], minlength=N_TIERS).tolist() for k in range(scheme.n_classes)]
    figures = figures_with_intervals(scored, scheme, bootstrap)
    return {
        "n_pairs": len(scored),
        "n_queries": len(np.unique(scored.query_id)),
        "n_ranked_queries": len(np.unique(scored.query_id[scored.ranked])),
        "figures": {name: asdict(interval) for name, interval in figures.items()},
        "always_most_relevant": always_most_relevant(scored.label, scheme),
        "labels": np.bincount(scored.label, minlength=scheme.n_classes).tolist(),
        "confusion": classification.confusion_matrix(scored.label, scored.predicted, scheme.n_classes).tolist(),
        "tiers_by_label": tier_K,
        "reliability": {
            "before": reliability_of(scored.raw_NK, scored.label),
            "after": reliability_of(scored.probabilities_NK, scored.label),
        },
        "trade_off": trade_off(scored, scheme),
    }


def locale_views(scored: Scored, scheme: LabelScheme, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Give the view of each policy locale; `pooled` holds the pairs of all others."""
    locales = np.unique(scored.policy_locale).tolist()
    return {name: view(scored.rows(scored.policy_locale == name), scheme, bootstrap) for name in locales}


def reliability_of(probabilities_NK: Floats, label_N: Ints) -> dict[str, list[float]]:
    """Give the reliability bins of the predicted class."""
    hit_N = probabilities_NK.argmax(axis=1) == label_N
    bins = reliability.reliability_bins(probabilities_NK.max(axis=1), hit_N)
    return {
        "forecast": bins.forecast_M.tolist(),
        "frequency": bins.frequency_M.tolist(),
        "count": bins.count_M.tolist(),
    }


def trade_off(scored: Scored, scheme: LabelScheme) -> list[dict[str, float]]:
    """Give, for each candidate edge, the share of Exact and of Irrelevant pairs filtered, business rules included.

    The edge is one cut for all locales, and filtering is counted whether certified or not.
    """
    exact, irrelevant = scored.label == scheme.exact, scored.label == scheme.irrelevant
    points = []
    for cut in GRID:
        filtered = np.where(scored.score < cut, ~scored.kept_at_worst, ~scored.kept_at_best)
        points.append(
            {
                "cut": float(cut),
                "exact_filtered": _share(filtered, exact),
                "irrelevant_filtered": _share(filtered, irrelevant),
            }
        )
    return points


def without_exact_only(scored: Scored) -> Scored:
    """Drop the pairs of Exact-only sources, which say nothing about class shares."""
    return scored.rows(~scored.exact_only)


def of_locale(scored: Scored, locale: str) -> Scored:
    """Keep one policy locale's pairs; all of them when the data names no such locale."""
    own = scored.policy_locale == locale
    return scored.rows(own) if own.any() else scored


def _share(event_N: Bools, among_N: Bools) -> float:
    return float(event_N[among_N].mean()) if among_N.any() else float("nan")


def _nanmean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
