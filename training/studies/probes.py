"""Keyword probes: which words of a rationale can be read off a representation, and whether a difference is real.

Suffixes: N pairs, M pairs that a keyword leaves, D width of a representation, E kinds of evidence, J folds, Q queries,
W draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from relevance.errors import InputError
from relevance.metrics.classification import auc
from training.words import chunks, is_cjk, stem, stems

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Strings = NDArray[np.str_]
Folds = list[tuple[Ints, Ints]]
"""(rows to fit on, rows to judge by) of each fold."""

MIN_LETTERS = 3


@dataclass(frozen=True, slots=True)
class Keyword:
    """A word of the rationales and the pairs it can be probed on.

    Args: word: its commonest form; row_M: pairs whose visible text does not hold it; present_M: whether the pair's
        rationale does; dropped: pairs left out because the word is visible; folds: over the M pairs, grouped by query.
    """

    word: str
    row_M: Ints
    present_M: Bools
    dropped: int
    folds: Folds


@dataclass(frozen=True, slots=True)
class KeywordRules:
    """Which words are probed.

    Args: limit: words at most; folds: of whole queries; minimum, minimum_share: pairs, and share of all pairs, that
        must hold a word and as many that must not; maximum_share: of a word's pairs may hold it, because F1 of what is
        nearly always there says little; evidence_auc: to which a word must follow from its rationale's evidence,
        because no state can hold which of many paraphrases was drawn.
    """

    limit: int = 15
    folds: int = 10
    minimum: int = 50
    minimum_share: float = 0.05
    maximum_share: float = 0.5
    evidence_auc: float = 0.7


@dataclass(frozen=True, slots=True)
class Probed:
    """What one probe found: out-of-fold answers and decision values of M pairs, and F1 of each fold."""

    answer_M: Bools
    decision_M: Floats
    f1_J: Floats


def find_keywords(
    rationales: Sequence[str],
    visible: Sequence[str],
    query_ids: Sequence[str],
    evidence_NE: NDArray[np.floating],
    *,
    rules: KeywordRules,
) -> list[Keyword]:
    """Give the most frequent content words of rationales, each with the pairs in which it cannot be read off the input.

    Words are compared by stem; numbers, stop words, short words and unbroken scripts are no keywords. Frequency counts
    the pairs left after dropping (arXiv:2601.21611, section 4.5.4, read pair by pair).

    Args: rationales, visible, query_ids: of each pair: its rationales' text, all text that the student reads, and its
        query; evidence_NE: counts of each kind of evidence, E = 0 for rationales that state none, whose words are then
        not held against it.
    Raises: InputError: if there are fewer queries than folds or no word is left.
    """
    n_pairs, n_queries = len(rationales), len(set(query_ids))
    if n_queries < rules.folds:
        raise InputError(f"probing: expected pairs of at least {rules.folds} queries, found {n_queries}")
    minimum = max(rules.minimum, int(rules.minimum_share * n_pairs))
    forms = _word_forms(rationales)
    stated = _rows_of([{stem(chunk) for chunk in chunks(text)} & forms.keys() for text in rationales])
    shown = _rows_of([stems(text) for text in visible])
    hidden = {key: rows - shown.get(key, set()) for key, rows in stated.items()}
    keywords: list[Keyword] = []
    for key in sorted(hidden, key=lambda k: (-len(hidden[k]), k)):
        if len(keywords) == rules.limit or len(hidden[key]) < minimum:
            break
        dropped = shown.get(key, set())
        row_M = np.array([row for row in range(n_pairs) if row not in dropped], dtype=np.int64)
        present_M = np.isin(row_M, list(hidden[key]))
        folds = query_folds([query_ids[row] for row in row_M], rules.folds)
        if _is_fit(present_M, folds, evidence_NE[row_M], minimum, rules):
            word = min(forms[key], key=lambda form: (-forms[key][form], form))
            keywords.append(Keyword(word, row_M, present_M, len(dropped), folds))
    if not keywords:
        raise InputError(
            f"probing: expected words with at least {minimum} pairs that hold them and as many that do not, "
            "following from the evidence, found none"
        )
    return keywords


def _is_fit(
    present_M: Bools, folds: Folds, evidence_ME: NDArray[np.floating], minimum: int, rules: KeywordRules
) -> bool:
    """Say whether a word has pairs enough with and without it, and follows from the evidence where there is any."""
    if (~present_M).sum() < minimum or present_M.mean() > rules.maximum_share or not trainable(present_M, folds):
        return False
    if not evidence_ME.shape[1]:
        return True
    return probe_auc(probe(evidence_ME, present_M, folds), present_M, folds) >= rules.evidence_auc


def _word_forms(texts: Sequence[str]) -> dict[str, Counter[str]]:
    """Count the forms of each content word, by stem."""
    forms: dict[str, Counter[str]] = {}
    for text in texts:
        for chunk in chunks(text):
            if len(chunk) >= MIN_LETTERS and chunk.isalpha() and not is_cjk(chunk) and chunk not in ENGLISH_STOP_WORDS:
                forms.setdefault(stem(chunk), Counter())[chunk] += 1
    return forms


def _rows_of(keys: Sequence[Iterable[str]]) -> dict[str, set[int]]:
    """Turn the words of each text round: the texts of each word."""
    rows: dict[str, set[int]] = {}
    for row, own in enumerate(keys):
        for key in own:
            rows.setdefault(key, set()).add(row)
    return rows


def query_folds(query_ids: Sequence[str], n_folds: int) -> Folds:
    """Cut pairs into folds of whole queries; no folds where there are fewer queries than that."""
    if len(set(query_ids)) < n_folds:
        return []
    places = np.zeros(len(query_ids))
    return [(fitted, judged) for fitted, judged in GroupKFold(n_folds).split(places, groups=list(query_ids))]


def trainable(present_M: Bools, folds: Folds) -> bool:
    """Say whether there are folds and the fitted part of each holds pairs with and pairs without the word."""
    return bool(folds) and all(0 < present_M[fitted].sum() < len(fitted) for fitted, _ in folds)


def probe(states_MD: NDArray[np.floating], present_M: Bools, folds: Folds) -> Probed:
    """Fit an L2 logistic regression on standardised states in each fold and give its answers on the rest.

    Classes weigh alike, so that a rare word is not answered by "never"; the strength of L2 is scikit-learn's C = 1.
    """
    decision_M = np.zeros(len(present_M))
    f1_J = np.zeros(len(folds))
    for fold, (fitted, judged) in enumerate(folds):
        mean_D, deviation_D = states_MD[fitted].mean(axis=0), states_MD[fitted].std(axis=0)
        standard_MD = (states_MD - mean_D) / np.where(deviation_D > 0, deviation_D, 1)
        model = LogisticRegression(class_weight="balanced", max_iter=5000)
        model.fit(standard_MD[fitted], present_M[fitted])
        decision_M[judged] = model.decision_function(standard_MD[judged])
        f1_J[fold] = f1(decision_M[judged] > 0, present_M[judged])
    return Probed(decision_M > 0, decision_M, f1_J)


def probe_auc(probed: Probed, present_M: Bools, folds: Folds) -> float:
    """Give the mean AUC over the folds that hold pairs with and pairs without the word; nan if none does."""
    values = np.array([auc(present_M[judged], probed.decision_M[judged]) for _, judged in folds])
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def f1(answer_M: Bools, present_M: Bools) -> float:
    """Give F1 = 2 TP / (2 TP + FP + FN) of pooled out-of-fold answers, 0 where nothing is present or answered."""
    wrong = int((answer_M != present_M).sum())
    hits = int((answer_M & present_M).sum())
    return 2 * hits / max(2 * hits + wrong, 1)


def control_labels(types_M: Strings, share: float, rng: np.random.Generator) -> Bools:
    """Give labels that mean nothing but are fixed for each word type: types in random order until the share is met.

    A probe that answers these has memorised the types (Hewitt and Liang, arXiv:1909.03368).

    Args: types_M: a word type of each pair's query; share: of pairs to be labelled true.
    """
    types, type_of_M, counts = np.unique(types_M, return_inverse=True, return_counts=True)
    order = rng.permutation(len(types))
    before = np.cumsum(counts[order]) - counts[order]
    chosen = np.zeros(len(types), dtype=bool)
    chosen[order[before < share * len(types_M)]] = True
    return np.asarray(chosen[type_of_M], dtype=bool)


def corrected_t_test(difference_J: Floats, test_to_train: float) -> float:
    """Give the two-sided p of a mean difference over J folds whose training parts overlap.

    t = mean / √((1 / J + n_test / n_train) s²) with J − 1 degrees of freedom: folds share pairs, and the plain paired
    t-test takes them for independent. Source: Nadeau and Bengio, Inference for the Generalization Error (2003).

    Args: difference_J: of one figure in each fold; test_to_train: size of a judged part over that of its fitted part.
    Returns: 1 where all differences are 0, 0 where all are the same other number.
    """
    n_folds = len(difference_J)
    mean = float(difference_J.mean())
    error = float(np.sqrt((1 / n_folds + test_to_train) * difference_J.var(ddof=1)))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * student_t.sf(abs(mean) / error, n_folds - 1))


def drawn_f1(answer_M: Bools, present_M: Bools, query_M: Ints, drawn_WQ: Floats) -> Floats:
    """Give pooled F1 under each draw of queries; shape (W,), 0 where a draw holds nothing present or answered.

    Args: query_M: each pair's query, by its place in the Q axis; drawn_WQ: how often each draw holds each query.
    """
    n_queries = drawn_WQ.shape[1]
    hit_W, wrong_W = (
        drawn_WQ @ np.bincount(query_M[chosen], minlength=n_queries)
        for chosen in (answer_M & present_M, answer_M != present_M)
    )
    return np.asarray(2 * hit_W / np.maximum(2 * hit_W + wrong_W, 1), dtype=np.float64)
