"""What a teacher's answers are worth, against brute force and sklearn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score

from relevance.labels import ESCI
from training.measures import Bootstrap
from training.teacher import judge_measures
from training.teacher.judge_measures import UNANSWERED, Draws

BOOTSTRAP = Bootstrap(draws=50)
CODES = "ESCI"


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(case):
    """Of n answers the first c are right: count the k-subsets that hold one of them."""
    n, right, k = case
    subsets = list(itertools.combinations(range(n), k))
    expected = sum(min(subset) < right for subset in subsets) / len(subsets)

    assert judge_measures.pass_at_k(np.array([right]), n, k)[0] == pytest.approx(expected)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_the_oracle_is_the_share_of_choices_of_one_answer_each_that_hold_a_right_one(right):
    """Three answers a perspective, one of each drawn: count the combinations."""
    choices = list(itertools.product(range(3), repeat=len(right)))
    expected = np.mean([any(own < count for own, count in zip(choice, right, strict=True)) for choice in choices])

    assert judge_measures.any_right(np.array([right]), 3)[0] == pytest.approx(expected)


def test_an_unanswered_pair_is_wrong_and_lowers_no_class_but_its_own():
    """sklearn's F1 with a fifth class that no label has, over the four real ones; accuracy counts every pair."""
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 4, 200)
    predicted_N = np.where(rng.random(200) < 0.5, label_N, rng.integers(-1, 4, 200))
    figures = judge_measures.class_figures(label_N, predicted_N, ESCI)
    each = f1_score(label_N, predicted_N, labels=range(4), average=None)

    assert (predicted_N == UNANSWERED).any()
    assert [figures[f"f1_{code}"] for code in CODES] == pytest.approx(each.tolist())
    assert figures["macro_f1"] == pytest.approx(each.mean())
    assert figures["accuracy"] == pytest.approx((label_N == predicted_N).mean())
    assert figures["kappa"] == pytest.approx(cohen_kappa_score(label_N, predicted_N))
    assert figures["answered"] == pytest.approx((predicted_N != UNANSWERED).mean())


def test_kappa_of_one_and_the_same_answer_is_unknown():
    """Both sides say Exact every time: no agreement beyond chance can be told, and no warning is given."""
    assert np.isnan(judge_measures.kappa(np.zeros(5, dtype=int), np.zeros(5, dtype=int)))
    assert np.isnan(judge_measures.kappa(np.array([], dtype=int), np.array([], dtype=int)))


def test_the_majority_baseline_is_what_always_naming_the_commonest_class_gives():
    """Seven of ten pairs are S: accuracy 0.7 and macro-F1 by sklearn."""
    label_N = np.array([1] * 7 + [0, 2, 3])
    found = judge_measures.majority(label_N, ESCI)

    assert found["class"] == "S"
    assert found["accuracy"] == 0.7
    assert found["macro_f1"] == pytest.approx(f1_score(label_N, np.ones(10), labels=range(4), average="macro"))


def test_perspectives_that_know_different_pairs_beat_more_answers_of_one():
    """Each of three is right on its own third and never elsewhere: any of them 1, pass@3 of any one a third."""
    third_N = np.arange(90) % 3
    right_NV = np.where(third_N[:, None] == np.arange(3), 5, 0)
    query_id = np.array([f"q{n // 3}" for n in range(90)])
    draws = Draws(query_id, ("user", "struct", "rule"), right_NV, np.where(right_NV > 0, 0, 1), 5)
    found = judge_measures.oracle_figures(draws, "struct", BOOTSTRAP)

    assert found["any_perspective"].value == 1.0
    assert found["single"].value == pytest.approx(1 / 3)
    assert found["difference"].low == pytest.approx(2 / 3)
    agreement = judge_measures.agreement(draws, BOOTSTRAP)
    assert list(agreement) == ["user–struct", "user–rule", "struct–rule"]
    assert agreement["user–struct"]["same"].value == pytest.approx(1 / 3)


def test_alike_perspectives_are_worth_no_more_than_answers_of_one():
    """Each answer of each perspective is right with chance 0.4, whoever gives it: the interval holds 0."""
    rng = np.random.default_rng(1)
    right_NV = rng.binomial(5, 0.4, (600, 3))
    draws = Draws(np.array([f"q{n // 5}" for n in range(600)]), ("user", "struct", "rule"), right_NV, right_NV, 5)
    found = judge_measures.oracle_figures(draws, judge_measures.best_perspective(draws), Bootstrap(draws=200))

    assert found["any_perspective"].value == pytest.approx(1 - 0.6**3, abs=0.03)
    assert found["difference"].low < 0 < found["difference"].high


def test_weighted_means_are_shares_of_spans():
    """Pairs with 1 of 4 and 3 of 3 spans found have 4 of 7; a pair without spans counts nowhere."""
    values = {"grounded": np.array([0.25, 1.0, np.nan])}
    found = judge_measures.mean_intervals(
        np.array(["a", "b", "c"]), values, BOOTSTRAP, {"grounded": np.array([4.0, 3.0, 0.0])}
    )

    assert found["grounded"].value == pytest.approx(4 / 7)
