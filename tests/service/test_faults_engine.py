"""Engines that raise, hang or give no numbers: who gets which answer, what the probes say, how the process ends."""

from __future__ import annotations

import time

import pytest

ENGINE_LOST = 70
PATIENCE_S = 30


@pytest.fixture(scope="module")
def faulty(launch_shared):
    """A server that no test of this module ends."""
    return launch_shared(faulty=True, drain_s="0")


def statuses(answers) -> list[int]:
    """Give the status of each answer; problem details wherever it is not 200."""
    found = [answer.result(PATIENCE_S) for answer in answers]
    assert {a.json()["code"] for a in found if a.status_code != 200} <= {"engine"}
    return [answer.status_code for answer in found]


def test_an_engine_that_raises_once_fails_that_request_only(launch, fresh_body):
    """A problem for the one, 200 for the next; the probes stay true, for the canary ran well."""
    server = launch(faulty=True)
    server.set_engine("raise", "ok")

    failed = server.client.post("/score", json=fresh_body())
    after = server.client.post("/score", json=fresh_body())

    assert (failed.status_code, failed.json()["code"]) == (500, "engine")
    assert failed.headers["content-type"] == "application/problem+json"
    assert "device" not in failed.text
    assert after.json()["counts"]["scored"] == 3
    assert [server.client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
    metrics = server.metrics()
    assert metrics['relevance_engine_failures_total{kind="exception"}'] == 1
    assert metrics['relevance_requests_total{code="500",outcome="failed",route="/score"}'] == 1
    assert metrics['relevance_pairs_total{outcome="error"}'] == 3


def test_a_request_of_many_batches_loses_those_that_failed(faulty, fresh_body):
    """The second batch of several raises: its rows come back unscored with a reason, all others with their scores."""
    faulty.set_engine("ok", "raise", "ok")

    answer = faulty.client.post("/score", json=fresh_body(3000))

    rows = answer.json()["results"]
    assert answer.status_code == 200
    assert [row["index"] for row in rows] == list(range(3000))
    assert {(row["source"], row.get("reason")) for row in rows} == {("model", None), ("unscored", "error")}
    assert answer.json()["counts"]["kept"] == 3000
    assert faulty.client.get("/readyz").status_code == 200


def test_a_second_failure_in_a_row_ends_the_process(launch, fresh_body):
    """The canary in between runs well, the next batch fails again: exit status 70, and both requests were answered."""
    server = launch(faulty=True)
    server.set_engine("raise", "ok", "raise", "ok")

    answers = [server.client.post("/score", json=fresh_body()).status_code for _ in range(2)]

    assert answers == [500, 500]
    assert server.process.wait(PATIENCE_S) == ENGINE_LOST


def test_a_lost_engine_leaves_nobody_waiting(launch, fresh_body):
    """Eight requests wait behind a slow batch when the device goes: each gets a problem before the process ends."""
    server = launch(faulty=True)
    server.set_engine("slow:0.5", "raise")

    first = server.post_apart([fresh_body()])
    server.wait_for("relevance_inflight_batches", 1)
    others = server.post_apart([fresh_body(1000) for _ in range(8)])

    assert statuses(first) == [200]
    assert statuses(others) == [500] * 8
    assert server.process.wait(PATIENCE_S) == ENGINE_LOST
    assert "the canary failed" in " ".join(server.lines())


@pytest.mark.parametrize("n_clients", [1, 20])
def test_a_hung_engine_is_told_by_livez_and_ends_the_process(launch, fresh_body, n_clients: int):
    """Liveness turns 503 first; then those who wait get a problem and the exit status is 70."""
    server = launch(faulty=True, hang_s="2")
    server.set_engine("hang")

    answers = server.post_apart([fresh_body() for _ in range(n_clients)])
    give_up = time.monotonic() + PATIENCE_S
    while (alive := server.client.get("/livez")).status_code == 200:
        assert time.monotonic() < give_up

    assert (alive.status_code, alive.json()["code"]) == (503, "not_ready")
    assert statuses(answers) == [500] * n_clients
    assert server.process.wait(PATIENCE_S) == ENGINE_LOST


def test_logits_that_are_no_numbers_leave_that_item_unscored_and_kept(faulty, fresh_body):
    """One row of three; it is null with a reason, counted, not cached, and scored when asked for again."""
    body = fresh_body()
    before = faulty.metrics()
    faulty.set_engine("nan", "ok")

    first = faulty.client.post("/score", json=body)
    again = faulty.client.post("/score", json=body).json()
    after = faulty.metrics()

    rows = first.json()["results"]
    [lost] = [row for row in rows if row["source"] == "unscored"]
    assert (lost["score"], lost["tier"], lost["label"], lost["reason"], lost["kept"]) == (None, None, None, "nan", True)
    assert all(0 <= row["score"] <= 1 for row in rows if row is not lost)
    assert first.json()["partial"] is True
    assert "NaN" not in first.text
    assert [row["source"] for row in again["results"]].count("cache") == 2
    assert again["counts"]["scored"] == 3
    for name in ('relevance_engine_failures_total{kind="nan"}', 'relevance_pairs_total{outcome="nan"}'):
        assert after[name] - before[name] == 1


def test_with_keep_unscored_off_an_item_without_a_score_is_dropped(launch, fresh_body):
    """Fail-closed: it is among the filtered ones."""
    server = launch(faulty=True, keep_unscored="false")
    server.set_engine("nan", "ok")

    answer = server.client.post("/score", json=fresh_body(return_filtered="full")).json()

    assert answer["counts"] == answer["counts"] | {"items": 3, "scored": 2, "kept": 2, "filtered": 1}
    assert [(row["reason"], row["kept"]) for row in answer["filtered"]] == [("nan", False)]
    assert {row["source"] for row in answer["results"]} == {"model"}
