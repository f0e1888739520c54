"""The figures of `relevance inspect`, counted by hand."""

import json

import numpy as np
import pytest
from inspected import (
    COMPLEMENT,
    EXACT,
    IRRELEVANT,
    POLICY,
    SUBSTITUTE,
    files,
    inspect,
    inspected,
    pair,
    write_lines,
)

from relevance.errors import RowError
from relevance.metrics.classification import accuracy, macro_f1
from relevance.metrics.intervals import query_bootstrap_many
from training.inspection.confusion import bootstrap

TEN = [
    pair("a", "kettle steel", "E", category="kitchen"),
    pair("a", "kettle lid", "E", chances=COMPLEMENT, category="kitchen"),
    pair("a", "toaster", "S", chances=SUBSTITUTE, category="kitchen"),
    pair("a", "garden hose", "I", chances=IRRELEVANT, category="garden"),
    pair("b", "desk lamp", "E", category="home"),
    pair("b", "floor lamp", "I", category="home"),
    pair("b", "bulb", "C", chances=COMPLEMENT, category="home"),
    pair("c", "水筒", "E", chances=IRRELEVANT, locale="jp"),
    pair("c", "鍋", "S", chances=SUBSTITUTE, locale="jp"),
    pair("c", "靴", "I", chances=SUBSTITUTE, locale="jp"),
]
"""Right: 1, 3, 4, 5, 7, 9. Wrong: E→C, I→E, E→I, I→S. In us one of three E is filtered, one of two I is kept."""


def test_the_matrix_counts_pairs_by_label_and_prediction(tmp_path):
    """E: two right, one to C, one to I; S: both right; C: right; I: one right, one to E, one to S."""
    report, _ = inspected(tmp_path, TEN)

    everything = report["confusions"]["all"]
    assert everything["matrix"] == [[2, 0, 1, 1], [0, 2, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]
    assert everything["wrong"] == 4
    by_locale = {cell["locale"]: cell["matrix"] for cell in report["confusions"]["locales"]}
    assert by_locale["jp"] == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_the_overview_has_the_figures_and_the_line_to_compare_with(tmp_path):
    """Accuracy 6/10; F1: E 4/7, S 4/5, C 2/3, I 2/5; always E: accuracy 0.4, macro-F1 2·0.4/(1.4·4)."""
    report, _ = inspected(tmp_path, TEN)

    overview = report["overview"]
    assert (overview["n_rows"], overview["n_queries"], overview["n_labelled"]) == (10, 3, 10)
    figures = overview["figures"]
    assert figures["accuracy"]["value"] == 0.6
    assert figures["macro_f1"]["value"] == pytest.approx((4 / 7 + 4 / 5 + 2 / 3 + 2 / 5) / 4)
    assert figures["always"] == {"label": 0, "accuracy": 0.4, "macro_f1": pytest.approx(0.8 / 5.6)}
    assert (figures["false_filter"]["events"], figures["false_filter"]["n"]) == (1, 4)
    assert (figures["leak"]["events"], figures["leak"]["n"]) == (2, 3)
    assert overview["by_tier"] == [2, 2, 3, 0, 3]


def test_intervals_are_those_of_the_query_bootstrap(rng):
    """The same draws of queries, from one matrix a query instead of from all rows."""
    query_N = np.repeat(np.arange(30), 4)
    label_N, predicted_N = rng.integers(0, 4, 120), rng.integers(0, 4, 120)
    matrix_QKK = np.zeros((30, 4, 4), dtype=np.int64)
    np.add.at(matrix_QKK, (query_N, label_N, predicted_N), 1)

    found = bootstrap(matrix_QKK, draws=50, seed=3)

    expected = query_bootstrap_many(
        [f"{q:02}" for q in query_N],
        lambda rows: {
            "accuracy": accuracy(label_N[rows], predicted_N[rows]),
            "macro_f1": macro_f1(label_N[rows], predicted_N[rows], 4),
        },
        draws=50,
        seed=3,
    )
    for name, interval in expected.items():
        got = found[name]
        assert (got.value, got.low, got.high) == pytest.approx((interval.value, interval.low, interval.high))


def test_a_rate_without_a_hit_counts_each_query_once(tmp_path):
    """None of 400 Exact pairs of four queries is filtered: four draws say little, 400 would say too much."""
    report, _ = inspected(tmp_path, [pair(query, f"kettle {n}", "E") for query in "abcd" for n in range(100)])

    found = report["overview"]["figures"]["false_filter"]
    assert (found["events"], found["n"], found["value"]) == (0, 400, 0.0)
    assert found["high"] > 0.3


def test_columns_sort_by_plain_numbers(tmp_path):
    """A thousand and more is shown with a comma, which no number to sort by has."""
    _, page = inspected(tmp_path, [pair(f"q{n % 50}", f"kettle {n}", "E", category="kitchen") for n in range(1100)])

    assert '<td data-v="1100">1,100' in page


def test_a_cell_is_a_locale_and_category_and_says_when_it_is_small(tmp_path):
    """60 pairs of 12 queries are not small, 3 of one query are; both have their own accuracy."""
    large = [pair(f"q{n % 12}", f"lamp {n}", "E" if n < 45 else "S", category="lamps") for n in range(60)]
    small = [pair("rug", f"rug {n}", "E", category="rugs") for n in range(3)]

    report, page = inspected(tmp_path, large + small)

    first, second = report["confusions"]["cells"]
    assert (first["category"], first["n_rows"], first["n_queries"], first["small"]) == ("lamps", 60, 12, False)
    assert first["accuracy"]["value"] == 0.75
    assert first["commonest"] == {"label": 1, "predicted": 0, "n": 15}
    assert (second["category"], second["small"], second["accuracy"]["value"]) == ("rugs", True, 1.0)
    assert '<tr class="small">' in page


def test_categories_beyond_the_commonest_are_taken_together(tmp_path):
    """Of four categories the two commonest stand alone; pairs without a category are one of their own."""
    rows = [pair("q", f"title {n}", "E", category=name) for n, name in enumerate("aaabbcd")]
    rows += [pair("q", f"untold {n}", "E") for n in range(3)]

    report, _ = inspected(tmp_path, rows, "--categories", "2")

    sizes = {cell["category"]: cell["n_rows"] for cell in report["confusions"]["categories"]}
    assert sizes == {"(no category)": 3, "a": 3, "(the other 3)": 4}


def test_an_attribute_can_be_the_category(tmp_path):
    """As the run's pairs files have it."""
    rows = [pair("q", f"title {n}", "E", attributes={"department": name}) for n, name in enumerate("xxy")]

    report, _ = inspected(tmp_path, rows, "--category", "department")

    assert [cell["category"] for cell in report["confusions"]["categories"]] == ["x", "y"]


def test_an_edge_keeps_what_reaches_it_and_what_no_rule_filters(tmp_path):
    """In us at 0.3: scores 0.9711, 0.3155 (a rule filters it), 0.4562, 0.0235, 0.9711, 0.9711, 0.3155 (a rule)."""
    report, _ = inspected(tmp_path, TEN)

    us = next(table for table in report["what_if"] if table["locale"] == "us")
    lines = {line["edge"]: line for line in us["lines"]}
    assert (us["n_rows"], us["edges"], us["unfiltered"]) == (7, {"us": 0.3}, [])
    today = lines[0.3]
    assert (today["filtered"], today["kept"]) == (3, pytest.approx(4 / 7))
    assert (today["false_filter"]["events"], today["false_filter"]["n"], today["recall"]) == (
        1,
        3,
        pytest.approx(2 / 3),
    )
    assert (today["leak"]["events"], today["leak"]["n"]) == (1, 2)
    assert today["precision"] == 0.5
    assert (today["cuts"], today["today"]) == (["1|2"], ["us"])
    assert lines[0.0]["filtered"] == 2, "the rule filters at any edge"
    assert (lines[0.5]["filtered"], lines[0.5]["precision"]) == (4, pytest.approx(2 / 3))
    assert (lines[1.0]["filtered"], lines[1.0]["precision"], lines[1.0]["recall"]) == (7, None, 0.0)
    assert {k: us["served"][k] for k in ("kept", "filtered")} == {k: today[k] for k in ("kept", "filtered")}


def test_pairs_without_a_scored_row_are_counted_and_a_text_is_no_flag(tmp_path):
    """Of ten pairs the scored file has eight rows; `exact_only` of the text "false" is a bad row, not true."""
    scores, pairs = files(tmp_path, TEN)
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:4] + lines[5:9]))
    report, page = inspect(tmp_path, scores, "--pairs", pairs)

    assert report["left_out"]["not_scored"] == 2
    assert "2 pairs that the scored file has no row of" in page
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    pairs.write_text("".join(json.dumps(row | {"exact_only": "false"}) + "\n" for row in rows))
    with pytest.raises(RowError, match="exact_only"):
        inspect(tmp_path, scores, "--pairs", pairs)


def test_where_nothing_is_filtered_there_are_no_edges_to_choose(tmp_path):
    """With filter_tier = 0 a pair is filtered at no edge: no line says otherwise."""
    scores, pairs = files(tmp_path, TEN)
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.replace("filter_tier = 2", "filter_tier = 0"))
    rows = [json.loads(line) | {"kept": True} for line in scores.read_text().splitlines()]
    write_lines(scores, rows)
    report, _ = inspect(tmp_path, scores, "--pairs", pairs)

    assert [table["lines"] for table in report["what_if"]] == [[]] * len(report["what_if"])


def test_a_locale_that_filters_nothing_shows_what_filtering_would_do(tmp_path):
    """In jp (edge 0.4, uncertified) scores are 0.0235, 0.4562, 0.4562: one pair would be filtered, none is."""
    report, page = inspected(tmp_path, TEN)

    jp = next(table for table in report["what_if"] if table["locale"] == "jp")
    today = next(line for line in jp["lines"] if line["edge"] == 0.4)
    assert (jp["edges"], jp["unfiltered"], jp["served"]["filtered"], today["filtered"]) == ({"jp": 0.4}, ["jp"], 0, 1)
    assert report["policy"]["uncertified"] == ["jp"]
    assert "In jp nothing is filtered today" in page
    together = report["what_if"][0]
    assert (together["locale"], together["edges"]) == ("all", {"us": 0.3, "jp": 0.4})
    assert {line["edge"]: line["cuts"] for line in together["lines"]}[0.4] == ["1|2 jp"]


def test_without_probabilities_a_rule_is_known_by_the_tier_that_it_moved(tmp_path):
    """The capped pairs stay filtered at every edge; doubtful labels are missing and the page says so."""
    report, page = inspected(tmp_path, TEN, drop=("probabilities",))

    us = next(table for table in report["what_if"] if table["locale"] == "us")
    assert [line["filtered"] for line in us["lines"] if line["edge"] in {0.0, 0.3}] == [2, 3]
    assert (report["noise"], report["rules_known"]) == (None, False)
    assert "relevance score --probabilities" in page


def test_expensive_mistakes_come_first_and_one_query_does_not_fill_the_list(tmp_path):
    """Filtered Exact by tier and score; kept Irrelevant by tier; then the widest gap. Two of a query at most."""
    lost = [pair("q", f"lost {n}", "E", chances=(0.2 - n / 100, 0, 0, 0.8 + n / 100)) for n in range(4)]
    more = [
        pair("r", "lost too", "E", chances=(0.25, 0, 0, 0.75)),
        pair("r", "shown", "I", chances=SUBSTITUTE),
        pair("r", "shown first", "I"),
        pair("r", "complement in tier 4", "C"),
        pair("r", "substitute in tier 4", "S"),
        pair("r", "fine", "E"),
    ]

    report, _ = inspected(tmp_path, lost + more, "--per-query", "2")

    lists = {entry["kind"]: entry for entry in report["examples"]}
    assert [row["title"] for row in lists["lost"]["rows"]] == ["lost 3", "lost 2", "lost too"]
    assert (lists["lost"]["n"], lists["lost"]["n_queries"]) == (5, 2)
    assert [row["title"] for row in lists["leaked"]["rows"]] == ["shown first", "shown"]
    assert [row["title"] for row in lists["other"]["rows"]] == ["complement in tier 4", "substitute in tier 4"]
    first = lists["leaked"]["rows"][0]
    assert (first["label"], first["predicted"], first["tier"], first["kept"]) == ("I", "E", 4, True)
    assert (first["p_label"], first["p_predicted"], first["row"]) == (0.01, 0.97, 7)


def test_scores_are_counted_by_label(tmp_path):
    """0.9711 lies in the last of twenty bins, 0.0235 in the first; unlabelled pairs are counted apart."""
    rows = [pair("q", "a", "E"), pair("q", "b", "I", chances=IRRELEVANT), pair("q", "c", chances=EXACT)]

    report, _ = inspected(tmp_path, rows)

    scores = report["overview"]["scores"]
    assert (scores["by_label"][0][-1], scores["by_label"][3][0], scores["unlabelled"][-1]) == (1, 1, 1)
    assert report["overview"]["n_labelled"] == 2
