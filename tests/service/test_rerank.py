"""The rerank dialects on a real server, and replays of the two strictest parsers that read them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from service.rerank_dialects import RerankRequest, cohere_body
from service.scorer import Scored

QUERY = "red shoe"
DOCUMENTS = ["Blue kettle 2 l", "Red running shoe", "", "Red shoe laces", "Red running shoe"]


@pytest.fixture
def scores(server):
    """What `/score` gives for the documents that it takes, by index."""
    items = [{"id": i, "title": text} for i, text in enumerate(DOCUMENTS) if text]
    answer = server.client.post("/score", json={"query": QUERY, "items": items, "min_tier": 0}).json()
    return {row["id"]: row["score"] for row in answer["results"]}


def ask(server, path="/rerank", **body):
    """Post a rerank call."""
    return server.client.post(path, json={"query": QUERY, **body})


def test_texts_get_the_array_of_text_embeddings_inference(server, scores):
    """Every text comes back, best first, with the score of `/score` and no other field."""
    response = ask(server, texts=DOCUMENTS, truncate=True, truncation_direction="Right")
    rows = response.json()

    assert response.status_code == 200
    assert [set(row) for row in rows] == [{"index", "score"}] * 5
    assert sorted(row["index"] for row in rows) == [0, 1, 2, 3, 4]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert {row["index"]: row["score"] for row in rows if row["index"] != 2} == pytest.approx(scores, abs=1e-6)
    for header in ("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time", "x-compute-tokens"):
        assert response.headers[header].isdecimal()
    assert response.headers["x-model-version"].count("@") == 1
    assert response.headers["x-calibration-version"]


def test_texts_come_back_on_request(server):
    """`return_text` adds each text to its row."""
    rows = ask(server, texts=DOCUMENTS, return_text=True).json()
    assert [row["text"] for row in rows] == [DOCUMENTS[row["index"]] for row in rows]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_documents_get_the_object_of_jina_vllm_and_infinity(server, scores, path):
    """Same scores, a usage in tokens, and no word of tiers; unknown fields are ignored."""
    body = ask(server, path, documents=DOCUMENTS, model="any", user="u", priority=3, rank_fields=["a"]).json()

    assert set(body) == {"object", "id", "created", "model", "results", "usage"}
    assert [set(row) for row in body["results"]] == [{"index", "relevance_score"}] * 5
    found = {row["index"]: row["relevance_score"] for row in body["results"] if row["index"] != 2}
    assert found == pytest.approx(scores, abs=1e-6)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 5
    assert body["model"] == server.client.get("/info").json()["model"]


def test_the_second_version_of_cohere_is_answered_in_its_shape(server):
    """`top_n` and `max_tokens_per_doc` may be null; meta names the version."""
    body = ask(server, "/v2/rerank", model="m", documents=DOCUMENTS, top_n=None, max_tokens_per_doc=None).json()

    assert set(body) == {"id", "results", "meta"}
    assert len(body["results"]) == 5
    assert body["meta"]["api_version"]["version"] == "2"


@pytest.mark.parametrize(("top_n", "expected"), [(None, 5), (0, 5), (2, 2), (9, 5)])
def test_the_best_n_are_returned_when_asked_for(server, top_n, expected):
    """Null and zero mean all; more than there are is no error; the best come first."""
    every = ask(server, documents=DOCUMENTS).json()["results"]
    assert ask(server, documents=DOCUMENTS, top_n=top_n).json()["results"] == every[:expected]


def test_equal_documents_keep_their_order(server):
    """The two equal ones have one score, and the earlier comes first."""
    rows = ask(server, texts=DOCUMENTS).json()
    places = {row["index"]: place for place, row in enumerate(rows)}
    assert places[4] == places[1] + 1
    assert rows[places[4]]["score"] == rows[places[1]]["score"]


def test_raw_scores_are_the_logits_of_the_calibrated_ones(server):
    """One is the other through the logistic function, in the same order."""
    plain, raw = (ask(server, texts=DOCUMENTS, raw_scores=flag).json() for flag in (False, True))
    assert [row["index"] for row in raw] == [row["index"] for row in plain]
    for a, b in zip(plain, raw, strict=True):
        assert 1 / (1 + math.exp(-b["score"])) == pytest.approx(a["score"], abs=2e-6)


def test_a_document_may_be_an_object(server, scores):
    """`{text}` is a text, one with a title an item; each comes back as it was given, other fields left out."""
    documents = [{"text": DOCUMENTS[0], "title": ""}, {"title": DOCUMENTS[1], "brand": "Ostra", "n": 1}, DOCUMENTS[3]]
    rows = ask(server, "/v1/rerank", documents=documents, return_documents=True).json()["results"]
    found = {row["index"]: row for row in rows}

    assert found[0]["document"] == {"title": "", "text": DOCUMENTS[0]}
    assert found[1]["document"] == {"title": DOCUMENTS[1], "brand": "Ostra"}
    assert found[2]["document"] == {"text": DOCUMENTS[3]}
    assert found[0]["relevance_score"] == pytest.approx(scores[0], abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "pointer"),
    [
        ("/rerank", {}, 422, "/documents"),
        ("/rerank", {"texts": ["a"], "documents": ["a"]}, 422, "/documents"),
        ("/v1/rerank", {"texts": ["a"]}, 422, "/documents"),
        ("/v2/rerank", {"documents": []}, 400, "/documents"),
        ("/rerank", {"texts": []}, 400, "/texts"),
        ("/rerank", {"texts": ["a", 3]}, 422, "/texts/1"),
        ("/rerank", {"documents": ["a", 3]}, 422, "/documents/1"),
        ("/rerank", {"documents": ["a", {"content": "x"}]}, 422, "/documents/1"),
        ("/rerank", {"documents": ["a"], "top_n": -1}, 422, "/top_n"),
        ("/rerank", {"documents": ["a"], "query": "  "}, 422, "/query"),
        ("/rerank", {"documents": ["a"], "query": "many words " * 200}, 422, "/query"),
    ],
)
def test_bad_calls_get_an_error_that_every_client_can_read(server, path, body, status, pointer):
    """One body holds RFC 9457's members and the strings that the clients of other servers look for."""
    response = ask(server, path, **body)
    problem = response.json()

    assert response.status_code == problem["status"] == status
    assert problem["errors"][0]["pointer"] == pointer
    assert all(isinstance(problem[name], str) and problem[name] for name in ("detail", "error", "message"))
    assert problem["error_type"][0].isupper()


@pytest.mark.parametrize("name", ["texts", "documents"])
def test_too_many_documents_are_refused_with_the_limit(launch_shared, name):
    """Whether a few or many more than the limit."""
    server = launch_shared(max_items="4")
    for n in (5, 17_000):
        response = server.client.post("/rerank", json={"query": QUERY, name: ["a"] * n})
        assert response.status_code == 413
        assert response.json()["detail"].startswith(f"{name}: expected at most 4, found ")


def test_with_the_kill_switch_on_every_document_keeps_its_place(launch_shared):
    """Nothing fails or is dropped: the caller's order, a score that no threshold drops, a header that says so."""
    server = launch_shared(max_items="4")
    server.client.post("/admin/mode", json={"mode": "passthrough"})
    response = ask(server, documents=["a", "b", "c"], top_n=2)
    texts = ask(server, texts=["a", "b", "c"]).json()
    server.client.post("/admin/mode", json={"mode": "score"})

    assert response.headers["x-mode"] == "passthrough"
    assert response.json()["results"] == [{"index": n, "relevance_score": 1.0} for n in range(2)]
    assert texts == [{"index": n, "score": 1.0} for n in range(3)]
    assert "x-mode" not in ask(server, documents=["a"]).headers


def test_a_deadline_that_passes_fails_the_whole_call(launch):
    """Half an answer would look like a whole one: 504 with the count, nothing partial."""
    server = launch()
    documents = [f"red shoe number {i} of many with a long enough title" for i in range(4000)]
    response = server.client.post(
        "/rerank", json={"query": QUERY, "documents": documents}, headers={"X-Request-Deadline-Ms": "5"}
    )
    assert response.status_code in {429, 504}
    assert response.json()["code"] in {"overloaded", "deadline"}


def test_the_list_of_models_names_the_one_that_is_served(server):
    """In the shape of OpenAI's list."""
    body = server.client.get("/v1/models").json()
    (model,) = body["data"]

    assert (body["object"], model["object"]) == ("list", "model")
    assert model["id"] == server.client.get("/info").json()["model"]
    assert isinstance(model["created"], int)


def test_calls_are_counted_under_their_route(server):
    """A rerank call is one request of its route and its documents are pairs."""
    wanted = ('route="/v1/rerank"', 'outcome="ok"')
    before = server.metrics()
    (series,) = (
        name for name in before if name.startswith("relevance_requests_total") and all(w in name for w in wanted)
    )
    ask(server, "/v1/rerank", documents=["Green tea", "Black tea"])

    assert server.metrics()[series] == before[series] + 1


def elasticsearch(body: bytes) -> list[tuple[int, float]]:
    """Read an answer as Elasticsearch's `hugging_face` service does: an array, known fields only, any other throws."""
    rows = []
    for entry in _array(body):
        for field in entry:
            if field not in {"index", "score", "relevance_score", "text", "document"}:
                raise ValueError(f"unknown field [{field}]")
        score = entry["score"] if "score" in entry else entry["relevance_score"]
        if score < 0:
            raise ValueError("negative scores break its retriever's window")
        rows.append((entry["index"], score))
    return rows


def _array(body: bytes) -> list:
    content = json.loads(body)
    if not isinstance(content, list):
        raise TypeError("expected START_ARRAY")
    return content


def opensearch(body: bytes, n: int) -> list[float]:
    """Read an answer as OpenSearch's Cohere post-process does: an array by index, each literal cast to a double."""
    literals = {int(index): score for index, score in re.findall(rb'"index":(\d+),"relevance_score":([^,}]+)', body)}
    scores: list[float] = [math.nan] * len(literals)
    for index, literal in literals.items():
        if not set(b".eE") & set(literal):
            raise TypeError(f"class java.lang.Integer cannot be cast to class java.lang.Double: {literal!r}")
        scores[index] = float(literal)
    if len(scores) != n or any(map(math.isnan, scores)):
        raise IndexError("a dropped document overruns the array")
    return scores


def test_elasticsearchs_strict_parser_reads_every_row(server):
    """With and without returned texts; as many rows as its window holds."""
    for flag in (False, True):
        rows = elasticsearch(ask(server, texts=DOCUMENTS, return_text=flag).content)
        assert sorted(index for index, _ in rows) == list(range(5))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_opensearchs_post_process_finds_every_score(server, path):
    """It sends top_n = the number of documents and casts each score to a double."""
    body = ask(server, path, model="m", documents=DOCUMENTS, top_n=len(DOCUMENTS)).content
    assert all(0 <= score <= 1 for score in opensearch(body, len(DOCUMENTS)))


def test_scores_of_exactly_zero_and_one_are_still_floats():
    """Rounding must not turn a score into an integer literal."""
    n = 3
    scored = Scored(
        score_B=np.array([0.0, 1.0, 1e-7]),
        tier_B=np.zeros(n, dtype=np.int64),
        label_B=np.zeros(n, dtype=np.int64),
        kept_B=np.ones(n, dtype=bool),
        truncated_B=np.zeros(n, dtype=bool),
        cached_B=np.zeros(n, dtype=bool),
        length_B=np.ones(n, dtype=np.int64),
        reason_B=np.zeros(n, dtype=np.int8),
        policy_locale="us",
        certified=True,
    )
    asked = RerankRequest(query="q", documents=["a", "b", "c"])
    assert opensearch(cohere_body(asked, scored, request_id="r"), n) == [0.0, 1.0, 0.0]
