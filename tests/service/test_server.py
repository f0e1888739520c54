"""A real server over HTTP: answers, order, filtering, health, concurrency, stopping."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from relevance.pairs import Item
from service.model import Model

ITEMS = [
    {"id": "k-1", "title": "Steel kettle 1.7 l", "brand": "Hearthside"},
    {"id": 7, "title": "Copper kettle with whistle", "color": "copper", "attributes": {"volume": "2 l"}},
    {"id": "k-1", "title": "Descaling tablets for kettles", "text": "Twelve tablets."},
    {"id": -3, "title": "Laufschuhe für Damen"},
]
BODY = {"query": "electric kettle", "locale": "en-US", "items": ITEMS}


def _score(client: httpx.Client, **changes) -> dict:
    answer = client.post("/score", json=BODY | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_item_is_answered_in_input_order_with_its_id_unchanged(server, model: Model):
    """Ids keep their type, duplicates are allowed, scores equal the scorer's to 1e-4."""
    body = _score(server.client, min_tier=0)

    expected = model.scorer.score(BODY["query"], [Item(**item) for item in ITEMS], locale="en-US")
    assert [row["id"] for row in body["results"]] == ["k-1", 7, "k-1", -3]
    assert [row["index"] for row in body["results"]] == [0, 1, 2, 3]
    assert pytest.approx(expected.score_B, abs=1e-4) == [row["score"] for row in body["results"]]
    assert expected.tier_B.tolist() == [row["tier"] for row in body["results"]]
    assert {"model"} == {row["source"] for row in body["results"]}


def test_the_answer_has_exactly_the_contracted_fields(server):
    """The top level and the rows hold what the API page lists, nothing more."""
    body = _score(server.client, min_tier=0)

    assert {
        *("request_id", "model", "calibration", "policy", "results", "policy_locale", "fields_used", "filtered"),
        *("counts", "partial", "usage", "timing_ms"),
    } == set(body)
    assert {"id", "index", "score", "tier", "label", "kept", "truncated", "source"} == set(body["results"][0])
    assert {"items", "scored", "kept", "filtered", "by_tier"} == set(body["counts"])
    assert {"queue", "tokenize", "infer", "total"} == set(body["timing_ms"])
    assert {"pairs", "tokens", "padded_tokens"} == set(body["usage"])


def test_filtered_items_go_where_return_filtered_says(server):
    """A min_tier that splits the items: kept and filtered together are all; none, ids and full differ only in shape."""
    tiers = [row["tier"] for row in _score(server.client, min_tier=0)["results"]]
    cut = max(tiers) + 1 if max(tiers) < 4 else 4
    gone = [i for i, tier in enumerate(tiers) if tier < cut]

    full = _score(server.client, min_tier=cut, return_filtered="full")
    ids = _score(server.client, min_tier=cut, return_filtered="ids")
    none = _score(server.client, min_tier=cut)

    assert gone == [row["index"] for row in full["filtered"]]
    assert [False] * len(gone) == [row["kept"] for row in full["filtered"]]
    assert [{"id": ITEMS[i]["id"], "index": i} for i in gone] == ids["filtered"]
    assert none["filtered"] == []
    assert len(gone) == none["counts"]["filtered"] == len(ITEMS) - none["counts"]["kept"]


def test_top_k_takes_the_best_scores_and_sort_orders_them(server):
    """top_k 2 keeps the two best scores: in input order by default, best first with sort score."""
    scores = [row["score"] for row in _score(server.client, min_tier=0)["results"]]
    best = sorted(range(4), key=lambda i: -scores[i])[:2]

    by_input = _score(server.client, min_tier=0, top_k=2)
    by_score = _score(server.client, min_tier=0, top_k=2, sort="score")

    assert sorted(best) == [row["index"] for row in by_input["results"]]
    assert best == [row["index"] for row in by_score["results"]]
    assert by_input["counts"]["kept"] == 4


def test_the_request_id_is_echoed_when_sound_and_made_when_not(server):
    """A plain id comes back in header and body; one with a blank is replaced."""
    kept = server.client.post("/score", json=BODY, headers={"X-Request-ID": "abc-123"})
    made = server.client.post("/score", json=BODY, headers={"X-Request-ID": "abc 123"})

    assert "abc-123" == kept.headers["x-request-id"] == kept.json()["request_id"]
    assert made.json()["request_id"] != "abc 123"
    assert [made.headers["x-request-id"]] == made.headers.get_list("x-request-id")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
def test_a_ready_service_is_healthy(server, path: str):
    """All three probes say 200."""
    assert server.client.get(path).json() == {"status": "ok", "phase": "ready"}


def test_info_tells_limits_locales_and_certificates(server, model: Model):
    """What a client needs to chunk its requests and to read the tiers."""
    info = server.client.get("/info").json()

    assert model.bundle.manifest.bundle_id == info["bundle"]
    assert (info["limits"]["max_items"], info["limits"]["max_body_bytes"]) == (600, 2_000_000)
    assert info["default_deadline_ms"] == 30_000
    assert {"support", "certified", "epsilon", "n_exact", "bound"} <= set(next(iter(info["locales"].values())))


def test_the_docs_page_loads_nothing_from_elsewhere(server):
    """No script, no absolute address; every schema is on it."""
    page = server.client.get("/docs")

    assert "http" not in page.text.replace("application/problem", "").replace("HTTP", "")
    assert "<script" not in page.text
    assert "POST /score" in page.text
    assert "ScoreRequest" in page.text


def test_concurrent_clients_each_get_their_own_answer(server):
    """48 requests from 8 threads: ids, counts and scores are those of the same request alone."""
    bodies = [
        {"query": f"kettle {i}", "items": [{"id": f"{i}-{j}", "title": f"kettle {i} {j}"} for j in range(1 + i % 7)]}
        for i in range(48)
    ]

    def ask(body: dict) -> dict:
        return server.client.post("/score", json=body | {"min_tier": 0}).json()

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, bodies))

    for body, first, second in zip(bodies, alone, together, strict=True):
        assert [item["id"] for item in body["items"]] == [row["id"] for row in second["results"]]
        assert pytest.approx([r["score"] for r in first["results"]], abs=1e-4) == [
            r["score"] for r in second["results"]
        ]


def test_a_deadline_that_has_passed_is_a_504(server):
    """600 long items in 1 ms: no row is scored before the deadline."""
    items = [{"id": i, "title": "kettle " * 100 + str(i)} for i in range(600)]

    answer = server.client.post("/score", json={"query": "kettle", "items": items, "deadline_ms": 1})

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline")


def test_metrics_are_there_at_zero_and_count_what_happened(server):
    """Series of things that never happened exist; one request of four items adds four to items and pairs."""

    def series() -> dict[str, float]:
        lines = [line for line in server.client.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = series()
    _score(server.client, min_tier=0)
    after = series()

    assert before['relevance_requests_total{code="429",outcome="shed",route="/score"}'] == 0
    assert before['relevance_pairs_total{outcome="nan"}'] == 0
    assert before["relevance_ready"] == 1
    for name, added in {
        'relevance_requests_total{code="200",outcome="ok",route="/score"}': 1,
        'relevance_pairs_total{outcome="scored"}': 4,
        "relevance_items_per_request_sum": 4,
        'relevance_request_duration_seconds_count{route="/score",size_class="s"}': 1,
    }.items():
        assert added == after[name] - before[name], name


def test_drain_from_loopback_turns_readiness_off_but_still_answers(launch):
    """After POST /admin/drain readyz is 503 with problem+json, livez 200, /score 200."""
    running = launch()

    drained = running.client.post("/admin/drain")
    ready = running.client.get("/readyz")

    assert drained.json() == {"phase": "draining"}
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert running.client.get("/livez").status_code == 200
    assert _score(running.client)["counts"]["items"] == 4


def test_sigterm_finishes_the_request_in_flight_and_exits_0(launch):
    """4,096 items are being scored when SIGTERM comes: all are answered, the exit status is 0."""
    running = launch(drain_s="0", threads="1")
    items = [{"id": i, "title": f"kettle {i} " * 30} for i in range(4096)]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.client.post, "/score", json={"query": "kettle", "items": items, "min_tier": 0})
        with httpx.Client(base_url=running.client.base_url) as other:
            while "relevance_queue_requests 1.0" not in other.get("/metrics").text:
                assert not answer.done()
        status = running.terminate()
        body = answer.result().json()

    assert 4096 == body["counts"]["scored"] == len(body["results"])
    assert status == 0


def test_sigterm_with_a_drain_window_flips_readiness_first(launch):
    """During the window readyz says 503 and /score still answers; then the process exits 0."""
    running = launch(drain_s="2")

    running.process.terminate()
    while (ready := running.client.get("/readyz")).status_code == 200:
        time.sleep(0.01)
    answer = _score(running.client)

    assert ready.status_code == 503
    assert answer["counts"]["items"] == 4
    assert running.process.wait(30) == 0


def test_the_log_has_one_json_line_a_request_without_the_query(launch):
    """The line carries id, status, sizes and times, and nothing a shopper typed."""
    running = launch(drain_s="0")
    running.client.post("/score", json=BODY, headers={"X-Request-ID": "log-me"})

    running.terminate()
    lines = [json.loads(line) for line in running.lines()]

    (line,) = [line for line in lines if line.get("request_id") == "log-me"]
    assert (line["status"], line["route"], line["items"]) == (200, "/score", 4)
    assert "electric" not in json.dumps(lines)
    assert "Hearthside" not in json.dumps(lines)
