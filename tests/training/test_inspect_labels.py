"""Doubtful labels: planted ones are found, others are not."""

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from inspected import EXACT, IRRELEVANT, SUBSTITUTE, inspected, pair

from relevance.labels import ESCI
from training.inspection.examples import Shown
from training.inspection.noise import confident_suspects
from training.inspection.rows import Rows


def rows_of(label_N, probabilities_NK):
    """Give rows of queries of their own with these labels and probabilities."""
    n = len(label_N)
    zeros = np.zeros(n, dtype=np.int64)
    return Rows(
        place_N=np.arange(1, n + 1),
        query_N=np.arange(n),
        locale_N=zeros,
        category_N=zeros,
        score_N=np.zeros(n),
        tier_N=zeros,
        predicted_N=probabilities_NK.argmax(axis=1),
        label_N=np.asarray(label_N),
        kept_N=np.ones(n, dtype=bool),
        situation_N=zeros,
        probabilities_NK=probabilities_NK.astype(np.float32),
        applies_SR=np.zeros((1, 0), dtype=bool),
        word_M=np.zeros(0, dtype=np.uint32),
        word_start_N=np.zeros(n + 1, dtype=np.int64),
        locales=("us",),
        categories=("",),
        rules_known=True,
    )


def test_planted_wrong_labels_are_the_suspects(tmp_path):
    """Forty sure pairs with their labels, two with another's: these two, the least probable label first."""
    rows = [
        pair(f"q{n}", f"thing {n}", "E" if n % 2 else "I", chances=EXACT if n % 2 else IRRELEVANT) for n in range(40)
    ]
    rows.insert(7, pair("planted one", "a lamp", "I", chances=(0.98, 0.01, 0.005, 0.005)))
    rows.insert(30, pair("planted two", "a hose", "E", chances=IRRELEVANT))

    report, _ = inspected(tmp_path, rows)

    noise = report["noise"]
    assert noise["n"] == 2
    assert [(row["query"], row["label"], row["likely"]) for row in noise["rows"]] == [
        ("planted one", "I", "E"),
        ("planted two", "E", "I"),
    ]
    assert noise["joint"] == [[20, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 20]]
    assert noise["thresholds"] == [pytest.approx((20 * 0.97 + 0.02) / 21), None, None, pytest.approx((18 + 0.005) / 21)]


def test_a_pair_whose_label_is_its_most_probable_class_is_no_suspect():
    """P = (0.5, 0.3, 0.2, 0) labelled E: P(S) reaches the mean of the S pairs, P(E) not that of the E pairs."""
    probabilities_NK = np.array([[0.9, 0.1, 0, 0], [0.5, 0.3, 0.2, 0], [0.6, 0.2, 0.2, 0], [0.4, 0.3, 0.3, 0]])

    found = confident_suspects(rows_of([0, 0, 1, 1], probabilities_NK), ESCI, Shown(10, 1))

    assert found["joint"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["rows"] == []


def test_the_suspects_are_those_of_the_authors_library(rng):
    """cleanlab on 2,000 pairs with a tenth of the labels moved: the same rows in the same order."""
    probabilities_NK = rng.dirichlet([0.6, 0.4, 0.3, 0.5], size=2000).astype(np.float32).astype(np.float64)
    label_N = np.array([rng.choice(4, p=p / p.sum()) for p in probabilities_NK])
    moved = rng.random(2000) < 0.1
    label_N[moved] = rng.integers(0, 4, moved.sum())

    found = confident_suspects(rows_of(label_N, probabilities_NK), ESCI, Shown(2000, 1))

    expected = find_label_issues(
        label_N, probabilities_NK, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    assert found["rows"] == expected.tolist()


def test_near_duplicate_titles_with_different_labels_are_found_with_the_words_that_differ(tmp_path):
    """Jaccard 5/7 (five of six stems shared) is too little, 9/11 (nine of ten) is enough; order is not read."""
    base = "Ostra trail running shoe waterproof grip sole women blue"
    rows = [
        pair("shoes", f"{base} 38", "E"),
        pair("shoes", f"{base} 39", "S", chances=SUBSTITUTE),
        pair("shoes", "road running shoe for men red", "E"),
        pair("shoes", "road running shoe for men green", "I"),
        pair("hose", f"{base} 38", "I", chances=IRRELEVANT),
        pair("lamp", "desk lamp with clamp", "E"),
        pair("lamp", "Lamp with desk clamp", "I"),
        pair("lamp", "red desk", "E"),
        pair("lamp", "desk red", "S"),
    ]

    report, page = inspected(tmp_path, rows)

    found = report["duplicates"]
    assert (found["n_pairs"], found["n_differing"]) == (2, 2)
    assert [(p["first"]["query"], p["similarity"]) for p in found["pairs"]] == [
        ("lamp", 1.0),
        ("shoes", pytest.approx(9 / 11, abs=1e-6)),
    ]
    assert (found["pairs"][1]["only_first"], found["pairs"][1]["only_second"]) == (["38"], ["39"])
    assert "<mark>38</mark>" in page


def test_one_query_of_many_duplicates_does_not_push_out_the_others(tmp_path):
    """Sixty equal titles of one query with both labels, and one pair each of five more queries."""
    rows = [pair("z", "steel kettle two litres", "EI"[n % 2]) for n in range(60)]
    rows += [pair(query, "steel kettle two litres", label) for query in "abcde" for label in "EI"]
    report, _ = inspected(tmp_path, rows)

    assert {shown["first"]["query"] for shown in report["duplicates"]["pairs"]} == set("abcdez")


def test_near_duplicates_with_one_label_are_counted_and_not_listed(tmp_path):
    """Three equal titles make three pairs; one of them has another label, so two differ."""
    rows = [pair("q", "blue enamel kettle", label) for label in ("E", "E", "S")]

    report, _ = inspected(tmp_path, rows)

    assert (report["duplicates"]["n_pairs"], report["duplicates"]["n_differing"]) == (3, 2)
    assert {p["second"]["row"] for p in report["duplicates"]["pairs"]} == {3}
