"""Two servers and one Redis: what one has scored, the other knows; Redis may die and come back, answers go on."""

from __future__ import annotations

import time

from redis_servers import PATIENCE_S

ERRORS = 'relevance_shared_cache_errors_total{kind="%s"}'


def sources(server, body: dict) -> set[str]:
    """Give where the scores of an answer come from."""
    answer = server.client.post("/score", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["partial"] is False
    return {row["source"] for row in answer.json()["results"]}


def test_replicas_share_scores_and_outlive_their_redis(launch, fresh_body, start_redis):
    """Same scores from the cache of the other; dead, it costs misses and errors in a series; back, it is used again."""
    redis_server = start_redis()
    url = f"redis://127.0.0.1:{redis_server.port}/0"
    first, second = (launch(redis_url=url, redis_timeout_ms="500", drain_s="0") for _ in range(2))
    body, length = fresh_body(30), 30

    computed = first.client.post("/score", json=body).json()
    redis_server.wait_for_keys(length)
    shared = second.client.post("/score", json=body).json()
    assert {row["source"] for row in computed["results"]} == {"model"}
    assert {row["source"] for row in shared["results"]} == {"cache"}
    assert [row["score"] for row in shared["results"]] == [row["score"] for row in computed["results"]]
    assert [row["truncated"] for row in shared["results"]] == [row["truncated"] for row in computed["results"]]
    assert second.metrics()['relevance_cache_hits_total{tier="shared"}'] == length

    redis_server.kill()
    assert [sources(server, fresh_body()) for server in (first, second) for _ in range(5)] == [{"model"}] * 10
    assert [server.metrics()[ERRORS % "connection"] > 0 for server in (first, second)] == [True, True]
    assert [server.client.get("/readyz").status_code for server in (first, second)] == [200, 200]

    redis_server.start()
    give_up = time.monotonic() + PATIENCE_S
    while True:
        again = fresh_body()
        assert sources(first, again) == {"model"}
        time.sleep(0.1)
        if sources(second, again) == {"cache"}:
            break
        assert time.monotonic() < give_up
    assert [server.terminate() for server in (first, second)] == [0, 0]


def test_garbage_in_redis_is_computed_again(launch, fresh_body, start_redis):
    """Every value there is overwritten with nonsense: a miss, a count, no error."""
    redis_server = start_redis()
    url = f"redis://127.0.0.1:{redis_server.port}/0"
    first, second = (launch(redis_url=url, redis_timeout_ms="500") for _ in range(2))
    body = fresh_body(10)
    assert sources(first, body) == {"model"}
    redis_server.wait_for_keys(10)
    client = redis_server.client()
    for key in client.scan_iter():
        client.set(key, b"\x00nonsense")
    client.close()

    assert sources(second, body) == {"model"}
    assert second.metrics()[ERRORS % "garbage"] == 10
