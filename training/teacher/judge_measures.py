"""What a teacher's answers are worth: pure functions of labels, answers and probabilities, no file is read here.

A pair without a readable label has the prediction `UNANSWERED`, which is no class and therefore wrong in every figure.
Suffixes: N pairs, K classes, V views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb
from sklearn.metrics import cohen_kappa_score

from relevance.labels import LabelScheme
from relevance.metrics import classification, reliability
from relevance.metrics.intervals import Interval, query_bootstrap_many
from training.measures import Bootstrap
from training.predictions import Predictions
from training.recipe import Perspective

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Strings = NDArray[np.str_]

UNANSWERED = -1
_NOT_KNOWN = float("nan")


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer to each of N labelled pairs.

    Args: query_id: str of shape (N,); label: class index; predicted: class index or `UNANSWERED`; probabilities_NK: of
        the classes, rows of nan where there are none.
    """

    query_id: Strings
    label: Ints
    predicted: Ints
    probabilities_NK: Floats

    def of(self, rows: NDArray[np.bool_]) -> Answers:
        """Give the answers to some of the pairs, bool of shape (N,)."""
        return Answers(self.query_id[rows], self.label[rows], self.predicted[rows], self.probabilities_NK[rows])


@dataclass(frozen=True, slots=True)
class Draws:
    """Several answers to each of N labelled pairs under each of V perspectives.

    Args: right_NV: how many of the answers were right; first_NV: class index of the first answer or `UNANSWERED`;
        samples: answers of each pair and perspective; a pair that was not asked has that many wrong ones.
    """

    query_id: Strings
    perspectives: tuple[Perspective, ...]
    right_NV: Ints
    first_NV: Ints
    samples: int


def classes_named(predictions: Predictions) -> Ints:
    """Give the class that each row of a teacher's predictions names, `UNANSWERED` where its logits are all the same."""
    logits_NK = predictions.logits_NK
    named = logits_NK.max(axis=1) > logits_NK.min(axis=1)
    return np.where(named, logits_NK.argmax(axis=1), UNANSWERED)


def pass_at_k(right_N: Ints, samples: int, k: int) -> Floats:
    """Give each pair's chance that k of its answers, drawn without replacement, hold a right one; shape (N,).

    1 − C(n − c, k) / C(n, k), the unbiased estimator for n answers of which c are right.

    Args: right_N: c; samples: n ≥ k.
    Source: Chen et al., arXiv:2107.03374, equation 1.
    """
    missed: Floats = comb(samples - np.asarray(right_N), k) / comb(samples, k)
    return 1.0 - missed


def any_right(right_NV: Ints, samples: int) -> Floats:
    """Give each pair's chance that one answer from every perspective holds a right one: 1 − Π (1 − c / n); shape (N,).

    The multi-perspective oracle of arXiv:2601.21611, section 3.2, averaged over which answer stands for a perspective.
    """
    missed: Floats = np.prod(1.0 - np.asarray(right_NV) / samples, axis=1)
    return 1.0 - missed


def kappa(label_N: Ints, predicted_N: Ints) -> float:
    """Give Cohen's κ; nan without pairs, and where both sides say one and the same thing of every pair."""
    if len(label_N) == 0 or len(np.union1d(label_N, predicted_N)) < 2:
        return _NOT_KNOWN
    return float(cohen_kappa_score(label_N, predicted_N))


def class_figures(label_N: Ints, predicted_N: Ints, scheme: LabelScheme) -> dict[str, float]:
    """Give accuracy, macro-F1, F1 of each class, κ with the labels and the share of pairs with an answer.

    Args: predicted_N: with `UNANSWERED`, which lowers the recall of the pair's class and no class's precision.
    """
    answered = predicted_N != UNANSWERED
    counts_KK = classification.confusion_matrix(
        label_N, np.where(answered, predicted_N, scheme.n_classes), _wide(scheme)
    )
    hits_K = np.diag(counts_KK)[:-1]
    total_K = (counts_KK.sum(axis=0) + counts_KK.sum(axis=1))[:-1]
    f1_K = np.divide(2.0 * hits_K, total_K, out=np.zeros(scheme.n_classes), where=total_K > 0)
    return {
        "accuracy": classification.accuracy(label_N, predicted_N),
        "macro_f1": float(f1_K.mean()),
        **{f"f1_{code}": float(f1) for code, f1 in zip(scheme.classes, f1_K, strict=True)},
        "kappa": kappa(label_N, predicted_N),
        "answered": float(answered.mean()) if len(answered) else _NOT_KNOWN,
    }


def confusion(answers: Answers, scheme: LabelScheme) -> list[list[int]]:
    """Count pairs by label (K rows) and prediction (K columns, then one of pairs without an answer)."""
    predicted_N = np.where(answers.predicted == UNANSWERED, scheme.n_classes, answers.predicted)
    counts: list[list[int]] = classification.confusion_matrix(answers.label, predicted_N, _wide(scheme))[:-1].tolist()
    return counts


def majority(label_N: Ints, scheme: LabelScheme) -> dict[str, str | float]:
    """Give what naming the commonest class of these pairs is worth: accuracy p and macro-F1 2p / ((1 + p) K)."""
    share_K = np.bincount(label_N, minlength=scheme.n_classes) / len(label_N)
    p = float(share_K.max())
    return {
        "class": scheme.classes[int(share_K.argmax())],
        "accuracy": p,
        "macro_f1": 2 * p / ((1 + p) * scheme.n_classes),
    }


def answer_figures(answers: Answers, scheme: LabelScheme, bootstrap: Bootstrap) -> dict[str, Interval]:
    """Give the class figures and, where there are probabilities, their calibration error, with query intervals."""

    def measures(rows: Ints) -> dict[str, float]:
        figures = class_figures(answers.label[rows], answers.predicted[rows], scheme)
        return figures | {"ece": _ece(answers.probabilities_NK[rows], answers.label[rows])}

    return _intervals(answers.query_id, measures, bootstrap)


def pass_curves(draws: Draws, bootstrap: Bootstrap) -> dict[str, list[Interval]]:
    """Give pass@1 … pass@n of each perspective, the mean over pairs with its query interval."""
    curves = {
        (name, k): pass_at_k(draws.right_NV[:, v], draws.samples, k)
        for v, name in enumerate(draws.perspectives)
        for k in range(1, draws.samples + 1)
    }
    found = mean_intervals(draws.query_id, {f"{name}@{k}": values for (name, k), values in curves.items()}, bootstrap)
    return {name: [found[f"{name}@{k}"] for k in range(1, draws.samples + 1)] for name in draws.perspectives}


def best_perspective(draws: Draws) -> Perspective:
    """Give the perspective whose single answers are right most often; the first of several."""
    return draws.perspectives[int(draws.right_NV.sum(axis=0).argmax())]


def oracle_figures(draws: Draws, best: Perspective, bootstrap: Bootstrap) -> dict[str, Interval]:
    """Set the multi-perspective oracle beside as many answers from one perspective (arXiv:2601.21611, section 3.2).

    Args: draws: with at least as many answers a perspective as there are perspectives; best: the single perspective,
        chosen on other pairs.
    Returns: `any_perspective`, `single` (pass@V of `best`) and their `difference`, from the same draws of queries.
    """
    own = draws.right_NV[:, draws.perspectives.index(best)]
    any_N = any_right(draws.right_NV, draws.samples)
    single_N = pass_at_k(own, draws.samples, len(draws.perspectives))
    values = {"any_perspective": any_N, "single": single_N, "difference": any_N - single_N}
    return mean_intervals(draws.query_id, values, bootstrap)


def agreement(draws: Draws, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Give how often each two perspectives' first answers name the same class, among pairs where both name one.

    Returns: `a–b` → share with its interval, κ, and the number of pairs.
    """
    rows: dict[str, dict[str, Any]] = {}
    for a, b in combinations(range(len(draws.perspectives)), 2):
        one_N, other_N = draws.first_NV[:, a], draws.first_NV[:, b]
        both = (one_N != UNANSWERED) & (other_N != UNANSWERED)
        same_N = np.where(both, (one_N == other_N).astype(np.float64), np.nan)
        rows[f"{draws.perspectives[a]}–{draws.perspectives[b]}"] = {
            "same": mean_intervals(draws.query_id, {"same": same_N}, bootstrap)["same"],
            "kappa": kappa(one_N[both], other_N[both]),
            "n_pairs": int(both.sum()),
        }
    return rows


def mean_intervals(
    query_id: Strings, values: Mapping[str, Floats], bootstrap: Bootstrap, weights: Mapping[str, Floats] | None = None
) -> dict[str, Interval]:
    """Give weighted means over pairs with query intervals; nan values count nowhere.

    Args: weights: name → what each pair counts, 1 where a name is missing: a share of spans is the mean over pairs of
        found / total, weighted by total.
    """
    weight = {
        name: np.where(np.isnan(own), 0.0, (weights or {}).get(name, np.ones(len(own)))) for name, own in values.items()
    }
    known = {name: np.nan_to_num(own) for name, own in values.items()}

    def measures(rows: Ints) -> dict[str, float]:
        totals = {name: float(weight[name][rows].sum()) for name in known}
        return {
            name: float(own[rows] @ weight[name][rows]) / totals[name] if totals[name] else _NOT_KNOWN
            for name, own in known.items()
        }

    return _intervals(query_id, measures, bootstrap)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give mean, median and 95th percentile; nan without values."""
    if not len(values):
        return dict.fromkeys(("mean", "p50", "p95"), _NOT_KNOWN)
    return {
        "mean": float(np.mean(values)),
        "p50": float(np.quantile(values, 0.5)),
        "p95": float(np.quantile(values, 0.95)),
    }


def _intervals(
    query_id: Strings, measures: Callable[[Ints], dict[str, float]], bootstrap: Bootstrap
) -> dict[str, Interval]:
    return query_bootstrap_many(
        query_id, measures, confidence=bootstrap.confidence, draws=bootstrap.draws, seed=bootstrap.seed
    )


def _ece(probabilities_NK: Floats, label_N: Ints) -> float:
    known = ~np.isnan(probabilities_NK).any(axis=1)
    return reliability.top_label_ece(probabilities_NK[known], label_N[known]) if known.any() else _NOT_KNOWN


def _wide(scheme: LabelScheme) -> int:
    """Give the number of classes with one more for pairs without an answer."""
    return scheme.n_classes + 1
