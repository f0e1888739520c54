"""The kill switch: passthrough keeps every item, says so, and needs no engine."""

from __future__ import annotations

import time

import pytest

ENGINE_LOST = 70
PATIENCE_S = 30
PAIRS = 'relevance_pairs_total{outcome="passthrough"}'


@pytest.fixture(scope="module")
def server(launch_shared):
    """A server that began with the switch on, and drops unscored items otherwise."""
    return launch_shared(faulty=True, mode="passthrough", keep_unscored="false")


def set_mode(server, mode: str) -> dict:
    """Turn the switch."""
    answer = server.client.post("/admin/mode", json={"mode": mode})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_item_is_kept_whatever_the_filter(server, fresh_body):
    """Fail-closed settings and the highest min_tier change nothing; rows, log, series and /info tell."""
    set_mode(server, "passthrough")
    before = server.metrics()

    answer = server.client.post("/score", json=fresh_body(100, min_tier=4), headers={"X-Request-ID": "as-it-is"})
    body, metrics = answer.json(), server.metrics()

    assert [row["index"] for row in body["results"]] == list(range(100))
    assert {(r["source"], r["reason"], r["kept"], r["score"], r["tier"]) for r in body["results"]} == {
        ("unscored", "passthrough", True, None, None)
    }
    assert body["counts"] == body["counts"] | {"items": 100, "scored": 0, "kept": 100, "filtered": 0}
    assert body["partial"] is True
    assert metrics["relevance_passthrough"] == 1
    assert metrics[PAIRS] - before[PAIRS] == 100
    assert server.client.get("/info").json()["mode"] == "passthrough"
    assert server.line(request_id="as-it-is")["outcome"] == "partial"


def test_the_switch_turns_at_run_time(server, fresh_body):
    """Off, items are scored; on, they are not, though their scores are cached; off again, the cache is there."""
    body = fresh_body()
    sources = []
    for mode in ("score", "passthrough", "score"):
        assert set_mode(server, mode) == {"mode": mode}
        sources.append({row["source"] for row in server.client.post("/score", json=body).json()["results"]})

    assert sources == [{"model"}, {"unscored"}, {"cache"}]
    assert server.metrics()["relevance_passthrough"] == 0


@pytest.mark.parametrize("body", [{"mode": "off"}, {}, {"mode": "score", "until": "noon"}])
def test_an_unknown_mode_is_refused(server, body: dict):
    """A 422; nothing changes."""
    mode = server.client.get("/info").json()["mode"]

    assert server.client.post("/admin/mode", json=body).status_code == 422
    assert server.client.get("/info").json()["mode"] == mode


def test_a_request_that_breaks_the_schema_is_refused_as_ever(server):
    """The switch is no way around the checks."""
    set_mode(server, "passthrough")

    assert server.client.post("/score", json={"query": "hose", "items": []}).status_code == 400
    assert server.client.post("/score", json={"query": "hose"}).status_code == 422


def test_the_switch_holds_though_the_engine_is_lost(launch, fresh_body):
    """Its canary fails: with the switch on, the process stays up and ready; off, it ends as ever."""
    server = launch(faulty=True, canary_s="0.2")
    set_mode(server, "passthrough")
    server.set_engine("raise")
    assert server.line(message="engine lost")["level"] == "critical"
    time.sleep(0.2)

    assert [server.client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
    assert server.client.post("/score", json=fresh_body()).json()["counts"]["kept"] == 3
    set_mode(server, "score")
    assert server.process.wait(PATIENCE_S) == ENGINE_LOST


def test_a_broken_engine_does_not_matter_with_the_switch_on(server, fresh_body):
    """No request reaches it."""
    set_mode(server, "passthrough")
    server.set_engine("raise")
    try:
        answers = [server.client.post("/score", json=fresh_body()) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        assert server.client.get("/readyz").status_code == 200
        assert server.metrics()['relevance_engine_failures_total{kind="exception"}'] == 0
    finally:
        server.set_engine("ok")
