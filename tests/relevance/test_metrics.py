"""Metrics against ir_measures, scikit-learn and closed forms."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, nDCG
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, roc_auc_score

from relevance.labels import ESCI
from relevance.metrics import classification, drift, ranking, reliability
from relevance.metrics.intervals import query_bootstrap, query_bootstrap_many

LISTS = st.lists(st.integers(0, 3), min_size=1, max_size=25)
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)
RELEVANCE = {0: 3, 1: 2, 2: 1, 3: 0}


def oracle(measure, labels, score):
    """Ask ir_measures about one query whose document j has this label and score."""
    qrels = [ir_measures.Qrel("q", f"d{j}", RELEVANCE[label]) for j, label in enumerate(labels)]
    run = [ir_measures.ScoredDoc("q", f"d{j}", float(s)) for j, s in enumerate(score)]
    return ir_measures.calc_aggregate([measure], qrels, run)[measure]


def names_of(labels):
    """Give item ids d0, d1, …"""
    return [f"d{j}" for j in range(len(labels))]


@settings(deadline=None)
@given(LISTS, st.sampled_from([5, 10, 100]), st.randoms(use_true_random=False))
def test_ndcg_lies_in_the_unit_interval_and_equals_ir_measures(labels, k, random):
    """Distinct scores, gains 100, 10, 1, 0 there and 1, 0.1, 0.01, 0 here: linear nDCG has no scale."""
    score = random.sample(range(1000), len(labels))
    ours = ranking.ndcg(ESCI.gain_K[labels], np.asarray(score, dtype=float), names_of(labels), k)
    if set(labels) == {3}:
        assert np.isnan(ours)
        return
    assert 0 <= ours <= 1
    assert ours == pytest.approx(oracle(nDCG(gains={3: 100, 2: 10, 1: 1, 0: 0}) @ k, labels, score), abs=1e-9)


@settings(deadline=None)
@given(LISTS.filter(lambda labels: 0 in labels), st.randoms(use_true_random=False))
def test_average_precision_equals_ir_measures(labels, random):
    """Exact alone counts as relevant: AP(rel=3)."""
    score = random.sample(range(1000), len(labels))
    ours = ranking.average_precision(np.asarray(labels) == 0, np.asarray(score, dtype=float), names_of(labels))
    assert ours == pytest.approx(oracle(AP(rel=3), labels, score), abs=1e-9)


def test_average_precision_without_a_positive_one_is_nan():
    """There is nothing to average over."""
    assert np.isnan(ranking.average_precision(np.array([False]), np.array([1.0]), ["a"]))


def test_ties_are_broken_by_item_id_whatever_the_row_order():
    """b, a and c with equal scores rank a, b, c."""
    assert ranking.order(np.zeros(3), ["b", "a", "c"]).tolist() == [1, 0, 2]


def test_by_query_leaves_out_queries_without_a_value():
    """Query q2 gives nan and is dropped."""
    value = {"q1": 1.0, "q2": float("nan")}
    rows = ["q1", "q2", "q1"]
    assert ranking.by_query(rows, lambda i: value[rows[i[0]]]) == {"q1": 1.0}


@given(PAIRS)
def test_confusion_and_macro_f1_equal_scikit_learn(pairs):
    """All four classes count, also those that never occur."""
    labels, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    classes = list(range(4))
    assert np.array_equal(
        sklearn_confusion(labels, predicted, labels=classes), classification.confusion_matrix(labels, predicted, 4)
    )
    expected = f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)
    assert classification.macro_f1(labels, predicted, 4) == pytest.approx(expected)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(2, 6))
def test_macro_f1_of_always_the_majority_has_a_closed_form(n_majority, n_other, n_classes):
    """F1 of the majority is 2p / (1 + p) with share p, all others 0: the mean is 2p / ((1 + p) K)."""
    labels = np.array([0] * n_majority + [1] * n_other)
    p = n_majority / len(labels)
    found = classification.macro_f1(labels, np.zeros_like(labels), n_classes)
    assert found == pytest.approx(2 * p / ((1 + p) * n_classes))


def test_accuracy_is_the_share_that_agrees():
    """Two of three; nan without pairs."""
    assert classification.accuracy(np.array([0, 1, 2]), np.array([0, 1, 3])) == pytest.approx(2 / 3)
    assert np.isnan(classification.accuracy(np.array([]), np.array([])))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60))
def test_auc_equals_scikit_learn_with_ties(rows):
    """Few distinct scores, so most are tied; nan when one kind is missing."""
    positive, score = (np.array(side) for side in zip(*rows, strict=True))
    found = classification.auc(positive, score.astype(float))
    if positive.all() or not positive.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(positive, score))


def test_calibration_error_of_a_perfectly_calibrated_set_is_zero():
    """Of n = 20 · j pairs with forecast j / 10, a share j / 10 comes true."""
    forecast = np.repeat(np.arange(1, 10) / 10, 20)
    happened = np.concatenate([np.arange(20) < 2 * j for j in range(1, 10)])
    assert reliability.reliability_bins(forecast, happened, 9).error == pytest.approx(0)
    probabilities = np.stack([forecast, 1 - forecast], axis=1)
    assert reliability.classwise_ece(probabilities, np.where(happened, 0, 1), 9) == pytest.approx(0)


def test_calibration_error_of_sure_and_wrong_is_one():
    """Probability 1 on the wrong class each time; the Brier score is then 2."""
    probabilities, labels = np.array([[1.0, 0.0]] * 4), np.ones(4, dtype=int)
    assert reliability.top_label_ece(probabilities, labels) == pytest.approx(1)
    assert reliability.brier(probabilities, labels) == pytest.approx(2)


@given(PAIRS, st.randoms(use_true_random=False))
def test_reliability_bins_count_every_pair_and_ignore_row_order(pairs, random):
    """Tied forecasts share a bin; shuffling rows changes nothing."""
    forecast = np.array([a / 3 for a, _ in pairs])
    happened = np.array([b > 1 for _, b in pairs])
    shuffled = np.array(random.sample(range(len(pairs)), len(pairs)))
    bins = reliability.reliability_bins(forecast, happened)
    again = reliability.reliability_bins(forecast[shuffled], happened[shuffled])
    assert len(pairs) == bins.count_M.sum()
    assert bins.error == pytest.approx(again.error)


def test_reliability_of_nothing_is_refused():
    """No pairs, no bins."""
    with pytest.raises(ValueError, match="at least one pair"):
        reliability.reliability_bins(np.array([]), np.array([]))


def test_population_stability_index_of_a_swap():
    """Shares (0.25, 0.75) against (0.75, 0.25): 2 · 0.5 · ln 3 = 1.0986; of equal shares 0."""
    assert drift.population_stability_index(np.array([1, 3]), np.array([3, 1])) == pytest.approx(np.log(3))
    assert drift.population_stability_index(np.array([1, 3]), np.array([10, 30])) == pytest.approx(0)


def test_a_bootstrap_draws_whole_queries():
    """Two queries, one all 0 and one all 1, of unlike size: a draw's mean is 0, 1 or 10 / 11, never between."""
    query_ids, value = ["a"] + ["b"] * 10, np.array([0.0] + [1.0] * 10)
    seen = set()

    def mean(rows):
        seen.add(round(float(value[rows].mean()), 6))
        return float(value[rows].mean())

    interval = query_bootstrap(query_ids, mean, draws=50)
    assert {0.0, 1.0, round(10 / 11, 6)} == seen
    assert (interval.low, interval.value, interval.high) == (0.0, 10 / 11, 1.0)


def test_figures_that_share_draws_have_the_intervals_they_have_alone():
    """The same seed draws the same queries; draws where a figure is nan are left out."""
    query_ids, value = [f"q{i // 3}" for i in range(60)], np.random.default_rng(1).normal(size=60)
    many = query_bootstrap_many(
        query_ids, lambda rows: {"mean": float(value[rows].mean()), "never": float("nan")}, draws=60, seed=3
    )
    assert many["mean"] == query_bootstrap(query_ids, lambda rows: float(value[rows].mean()), draws=60, seed=3)
    assert np.isnan([many["never"].value, many["never"].low, many["never"].high]).all()
