"""More than the engine can do, less time than it needs, a clock that jumps: each item is answered exactly once."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

S_PER_TOKEN = 0.0002
"""What the engine of these tests takes for a padded token: 5,000 a second, the same on every machine."""
OVERLOAD_S = 6
PATIENCE_S = 30


@pytest.fixture(scope="module")
def slow(launch_shared):
    """A server of known speed that keeps unscored items."""
    return launch_shared(faulty=f"drag:{S_PER_TOKEN}")


@pytest.fixture(scope="module")
def closed(launch_shared):
    """A server of known speed that drops unscored items."""
    return launch_shared(faulty=f"drag:{S_PER_TOKEN}", keep_unscored="false")


def timed_post(server, body: dict, **headers: str) -> tuple[httpx.Response, float]:
    """Give an answer and the seconds it took."""
    began = time.perf_counter()
    answer = server.client.post("/score", json=body, headers=headers)
    return answer, time.perf_counter() - began


def test_twice_the_load_it_can_bear_is_answered_or_refused(slow, fresh_body):
    """Six seconds: only 200, 429 and 504; every refusal says when to come back; no item is lost or answered twice."""
    tokens = slow.client.post("/score", json=fresh_body(20)).json()["usage"]["tokens"]
    every_s = tokens * S_PER_TOKEN / 2
    bodies = [
        fresh_body(20, deadline_ms=500, on_overload="partial" if number % 2 else "reject")
        for number in range(int(OVERLOAD_S / every_s))
    ]
    before = slow.metrics()
    with (
        httpx.Client(base_url=slow.client.base_url, timeout=PATIENCE_S) as client,
        ThreadPoolExecutor(32) as pool,
    ):
        began = time.perf_counter()
        answers = []
        for number, body in enumerate(bodies):
            time.sleep(max(0.0, began + number * every_s - time.perf_counter()))
            answers.append(pool.submit(client.post, "/score", json=body))
        found = [answer.result(PATIENCE_S) for answer in answers]
    after = slow.metrics()

    counts = Counter(answer.status_code for answer in found)
    assert set(counts) <= {200, 429, 504}
    assert counts[200] > counts[504]
    assert counts[429]
    for answer in found:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["retry_after_ms"] >= 1
    for body, answer in zip(bodies, found, strict=True):
        if answer.status_code == 200:
            assert [row["index"] for row in answer.json()["results"]] == list(range(20))
        assert (answer.status_code, body["on_overload"]) != (429, "partial")
    unscored = [row["reason"] for a in found if a.status_code == 200 for row in a.json()["results"] if "reason" in row]
    assert set(unscored) == {"overload"} | (set(unscored) & {"deadline"})
    ended = sum(after[name] - before[name] for name in after if name.startswith("relevance_pairs_total{"))
    assert ended == 20 * len(bodies)


def test_at_the_deadline_what_is_there_is_answered(slow, fresh_body):
    """About four times what fits until then: some rows have scores, the others say why not and are kept."""
    by_field, field_s = timed_post(slow, fresh_body(300, deadline_ms=400))
    by_header, header_s = timed_post(slow, fresh_body(300), **{"X-Request-Deadline-Ms": "400"})

    assert max(field_s, header_s) < 2.4
    for answer in (by_field, by_header):
        body = answer.json()
        rows = body["results"]
        assert [row["index"] for row in rows] == list(range(300))
        assert {(row.get("reason"), row["score"] is None) for row in rows} == {(None, False), ("deadline", True)}
        assert body["partial"] is True
        assert 0 < body["counts"]["scored"] < 300


def test_with_keep_unscored_off_what_was_not_reached_is_dropped(closed, fresh_body):
    """Fail-closed: results hold scored rows only."""
    body = closed.client.post("/score", json=fresh_body(300, deadline_ms=400)).json()

    assert 0 < body["counts"]["scored"] == len(body["results"]) == body["counts"]["kept"] < 300
    assert body["counts"]["filtered"] == 300 - body["counts"]["kept"]


def test_a_deadline_is_kept_though_the_engine_is_not_back(launch, fresh_body):
    """A batch of three seconds, a deadline of 200 ms: a 504 long before the batch ends."""
    server = launch(faulty=True)
    server.set_engine("slow:3", "ok")

    answer, seconds = timed_post(server, fresh_body(deadline_ms=200))

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline")
    assert seconds < 2.2
    assert server.metrics()['relevance_pairs_total{outcome="expired"}'] == 3


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
def test_a_jump_of_the_wall_clock_changes_nothing(slow, fresh_body, jump_s: int):
    """A day to and fro while a request runs: it is scored in full, then cached; deadlines end when they should."""
    today = time.strftime("%Y-%m-%d", time.gmtime())
    body = fresh_body(100, deadline_ms=20_000)
    before = slow.metrics()
    [running] = slow.post_apart([body])
    slow.wait_for("relevance_inflight_batches", 1)
    slow.set_clock(jump_s)
    first = running.result(PATIENCE_S).json()
    again = slow.client.post("/score", json=body, headers={"X-Request-ID": f"jump{jump_s}"}).json()
    in_time = slow.client.post("/score", json=fresh_body(20, deadline_ms=5000)).json()
    late = slow.client.post("/score", json=fresh_body(300, deadline_ms=400)).json()
    slow.set_clock(0)
    after = slow.metrics()

    assert (first["counts"]["scored"], first["partial"]) == (100, False)
    assert {row["source"] for row in again["results"]} == {"cache"}
    assert in_time["counts"]["scored"] == 20
    assert 0 < late["counts"]["scored"] < 300
    assert all(0 <= ms < 20_000 for answer in (first, again) for ms in answer["timing_ms"].values())
    sums = 'relevance_request_duration_seconds_sum{route="/score",size_class="m"}'
    assert 0 < after[sums] - before[sums] < PATIENCE_S
    assert slow.client.get("/readyz").status_code == 200
    jumped = slow.line(request_id=f"jump{jump_s}")
    assert (jumped["time"] > today) == (jump_s > 0)
    assert not jumped["time"].startswith(today)
