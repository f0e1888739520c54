"""A real Prometheus scrapes the running service; every expression of rules and dashboards finds data there."""

from __future__ import annotations

import math
import shutil
from collections import Counter

import pytest
from promql_reading import EXPRESSIONS, QUERIES, RECORDED, RULES, operands, selectors

from benchmarks.dashboard_picture import PANELS, ask_all, charts, draw
from benchmarks.watched import exercise, shortened, watched_service
from k8s.monitoring.__main__ import FOLDER

ROUNDS = 5
LOOK_BACK_S = 120
RULES_LOADED = [FOLDER / "rules" / f"{name}.yaml" for name in ("slo", "causes", "latency-cpu")]
DID_NOT_HAPPEN = {
    "relevance_shared_cache_duration_seconds": "no Redis is asked here, so no look-up has a duration",
    "absent(": "the service is there",
    'precision="fp32"': "the embedded default serves int8w",
}
"""What gives no data for a good reason, by a part of the expression."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The Prometheus after some seconds of every kind of traffic."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    with watched_service(tmp_path_factory.mktemp("watched"), RULES_LOADED) as (server, prometheus):
        prometheus.wait_for_scrapes(2)
        statuses: Counter[int] = Counter()
        for number in range(ROUNDS):
            statuses.update(exercise(server.port, number))
            prometheus.wait_for_scrapes(1)
        prometheus.wait_for_scrapes(3)
        assert {200, 400, 422, 429, 504} <= set(statuses)
        yield prometheus


def values(prometheus, expr: str) -> list[float]:
    """Give what an expression gave in the last minutes, NaN left out."""
    lines = prometheus.lines(expr, LOOK_BACK_S)
    return [value for line in lines for value in line.values if not math.isnan(value)]


def excused(expr: str) -> bool:
    """Say whether an expression is about something that did not happen."""
    return any(part in expr for part in DID_NOT_HAPPEN)


def test_every_rule_is_evaluated_without_an_error(watched):
    """By Prometheus's own account."""
    rules = [rule for group in watched.get("rules", {})["groups"] for rule in group["rules"]]

    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == sum(path in RULES_LOADED for path, _ in RULES)


def test_every_query_of_a_dashboard_gives_data(watched):
    """Except of what did not happen, which is named."""
    empty = [(where, q) for where, q in QUERIES if not excused(q) and not values(watched, shortened(q))]

    assert empty == []


def test_every_side_of_what_a_rule_compares_gives_data(watched):
    """An alert that rests gives nothing as a whole, so the operands of its comparisons are asked."""
    asked = [side for path, rule in RULES if path in RULES_LOADED for side in operands(rule["expr"])]

    assert [side for side in dict.fromkeys(asked) if not excused(side) and not values(watched, side)] == []


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_what_a_rule_records_is_there(watched, name):
    """Under the name that dashboards and alerts use."""
    assert values(watched, name)


def test_every_selector_matches_a_series_that_the_service_exposes(watched):
    """Name, label names and label values: a size class, an outcome or a bucket's edge that does not exist is caught."""
    asked = {selector.text for expr in EXPRESSIONS for selector in selectors(expr) if not excused(selector.text)}
    missing = [text for text in sorted(asked) if not watched.get("series", {"match[]": text})]

    assert missing == []


def test_the_list_of_what_did_not_happen_is_up_to_date(watched):
    """Whatever gives data after all must leave the list."""
    sides = {side for expr in EXPRESSIONS for side in operands(expr) if excused(side)}
    happened = [
        side
        for side in sorted(sides)
        for row in watched.get("query", {"query": side})["result"]
        if not math.isnan(float(row["value"][1]))
    ]

    assert happened == []


def test_the_indicators_agree_with_what_was_asked(watched):
    """Some requests ended with 504 and some were shed; pairs went unscored; all four size classes had traffic."""
    assert max(values(watched, 'relevance:slo_error:ratio_rate5m{slo="availability"}')) > 0
    assert max(values(watched, 'relevance:slo_error:ratio_rate5m{slo="scored"}')) > 0
    assert max(values(watched, "relevance:shed:ratio_rate10m")) > 0
    sizes = {
        line.labels["size_class"] for line in watched.lines("relevance_request_duration_seconds_count > 0", LOOK_BACK_S)
    }
    assert {"s", "m", "l", "xl"} <= sizes


def test_the_picture_shows_every_panel_it_names(watched, tmp_path):
    """Drawn from this run; the one in docs/img is of a longer run."""
    draw(ask_all(watched, LOOK_BACK_S), tmp_path / "img" / "dashboards.svg", since=0)

    drawn = (tmp_path / "img" / "dashboards.svg").read_text(encoding="utf-8")
    assert len(charts()) == sum(map(len, PANELS.values()))
    assert [chart.title for _, chart in charts() if chart.title not in drawn] == []
