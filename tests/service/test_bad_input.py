"""Bad input over HTTP: a clear problem each, never a 5xx, never the input echoed; the service answers on."""

from __future__ import annotations

import json

import httpx
import pytest

from service.schemas import SchemaError, ScoreRequest, parse_body

JSON = {"content-type": "application/json"}
GOOD = {"query": "kettle", "items": [{"id": 1, "title": "steel kettle"}]}
PROBLEM_FIELDS = {
    *("type", "title", "status", "detail", "instance", "code", "request_id", "errors"),
    *("error", "error_type", "message"),
}


def _post(server, content: bytes, **headers: str) -> httpx.Response:
    return server.client.post("/score", content=content, headers=JSON | headers)


def _check(answer: httpx.Response, status: int, code: str) -> dict:
    assert (status, code) == (answer.status_code, answer.json().get("code")), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= PROBLEM_FIELDS
    assert status == answer.json()["status"]
    return answer.json()


def _body(**changes) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_no_items_is_a_400(server):
    """An empty list of items."""
    problem = _check(_post(server, _body(items=[])), 400, "empty_items")

    assert problem["errors"][0]["pointer"] == "/items"


@pytest.mark.parametrize("n", [601, 5000, 20_000])
def test_too_many_items_are_a_413_that_names_the_limit(server, n: int):
    """The limit of this server is 600; 20,000 is beyond what the parser reads to the end."""
    problem = _check(_post(server, _body(items=[{"id": i, "title": "k"} for i in range(n)])), 413, "too_large")

    assert "at most 600" in problem["detail"]


MALFORMED = {
    "empty": b"",
    "cut off": _body()[:-2],
    "invalid UTF-8": b'{"query":"\xff","items":[{"id":1,"title":"a"}]}',
    "lone surrogate in query": b'{"query":"\\ud800","items":[{"id":1,"title":"a"}]}',
    "lone surrogate in title": b'{"query":"q","items":[{"id":1,"title":"a\\udc00b"}]}',
    "raw control character": b'{"query":"a\x01b","items":[{"id":1,"title":"a"}]}',
    "nested without end": b"[" * 100_000,
    "two documents": _body() + _body(),
    "UTF-16": _body().decode().encode("utf-16"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_json_in_utf8_is_a_400(server, name: str):
    """Each kind of damage is told as such."""
    problem = _check(_post(server, MALFORMED[name]), 400, "malformed_body")

    assert "expected JSON in UTF-8" in problem["detail"]


SCHEMA = {
    "no title": (_body(items=[{"id": 1}]), "/items/0/title"),
    "empty title": (_body(items=[{"id": 1, "title": ""}]), "/items/0/title"),
    "null title": (_body(items=[{"id": 1, "title": None}]), "/items/0/title"),
    "no id": (_body(items=[{"title": "a"}]), "/items/0/id"),
    "boolean id": (_body(items=[{"id": True, "title": "a"}]), "/items/0/id"),
    "fractional id": (_body(items=[{"id": 1.5, "title": "a"}]), "/items/0/id"),
    "id beyond 64 bits": (_body(items=[{"id": 2**80, "title": "a"}]), "/items/0/id"),
    "second item wrong": (_body(items=[{"id": 1, "title": "a"}, {"id": 2, "title": 3}]), "/items/1/title"),
    "unknown field": (_body(querry="x"), "/querry"),
    "unknown item field": (_body(items=[{"id": 1, "title": "a", "colour": "red"}]), "/items/0/colour"),
    "unknown field with a slash": (_body(**{"a/b~": 1}), "/a~1b~0"),
    "blank query": (_body(query=" \t "), "/query"),
    "query not a text": (_body(query=["kettle"]), "/query"),
    "NaN for a query": (b'{"query":NaN,"items":[{"id":1,"title":"a"}]}', "/query"),
    "NaN for a tier": (_body(min_tier=float("nan")), "/min_tier"),
    "Infinity for top_k": (_body(top_k=float("inf")), "/top_k"),
    "boolean tier": (_body(min_tier=True), "/min_tier"),
    "tier 5": (_body(min_tier=5), "/min_tier"),
    "top_k 0": (_body(top_k=0), "/top_k"),
    "deadline 0": (_body(deadline_ms=0), "/deadline_ms"),
    "sort by price": (_body(sort="price"), "/sort"),
    "attributes with a number": (
        _body(items=[{"id": 1, "title": "a", "attributes": {"n": 1}}]),
        "/items/0/attributes/n",
    ),
    "items not a list": (_body(items={"id": 1}), "/items"),
    "a list": (b"[1]", ""),
    "another server's dialect": (b'{"text_1":"a","text_2":["b"]}', "/query"),
}


@pytest.mark.parametrize("name", SCHEMA)
def test_what_breaks_the_schema_is_a_422_with_a_pointer(server, name: str):
    """The pointer names the place."""
    content, pointer = SCHEMA[name]

    problem = _check(_post(server, content), 422, "schema")

    assert pointer in [fault["pointer"] for fault in problem["errors"]]


def test_a_422_does_not_echo_the_input(server):
    """Neither a wrong value nor a neighbour's title is in the answer."""
    content = _body(items=[{"id": 1, "title": ["hush-hush"]}, {"id": 2, "title": "secret-name"}])

    answer = _post(server, content)

    assert "hush" not in answer.text
    assert "secret" not in answer.text


def test_a_thousand_faults_and_a_long_field_name_give_a_short_answer(server):
    """At most twenty faults are listed, and a field name of 100,000 characters is cut."""
    many = _post(server, _body(items=[{"id": True} for _ in range(500)]))
    long_name = _post(server, _body(**{"x" * 100_000: 1}))

    assert len(_check(many, 422, "schema")["errors"]) == 20
    _check(long_name, 422, "schema")
    assert len(long_name.content) < 4000


def test_a_query_over_the_token_limit_is_a_422_that_names_the_limit(server):
    """Queries are never cut."""
    limit = server.client.get("/info").json()["limits"]["max_query_tokens"]

    problem = _check(_post(server, _body(query="kettle " * 400)), 422, "query_too_long")

    assert f"at most {limit} tokens" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/query"


def test_explain_is_refused_clearly(server):
    """This bundle has nothing to explain with."""
    problem = _check(_post(server, _body(explain=True)), 422, "not_offered")

    assert problem["errors"][0]["pointer"] == "/explain"


def test_a_title_of_a_megabyte_is_scored_and_flagged(server):
    """One long title does not fail its request: it is cut and says so."""
    answer = _post(server, _body(items=[{"id": 1, "title": "kettle " * 150_000}], min_tier=0))

    assert answer.status_code == 200
    assert [row["truncated"] for row in answer.json()["results"]] == [True]


def test_escaped_control_characters_and_astral_characters_are_scored(server):
    """\\u0000 and friends are blanks to the model; a surrogate pair is one character."""
    content = b'{"query":"a\\u0000b","items":[{"id":1,"title":"\\u0007\\u200b\\ud83d\\udc5f"}],"min_tier":0}'

    answer = _post(server, content)

    assert answer.status_code == 200
    assert answer.json()["counts"]["scored"] == 1


def test_ids_with_duplicates_and_extremes_come_back(server):
    """±2⁶³ bounds, an empty text and the same id twice."""
    ids = [2**63 - 1, -(2**63), "", "7", 7, 7]
    answer = _post(server, _body(items=[{"id": i, "title": "a"} for i in ids], min_tier=0))

    assert ids == [row["id"] for row in answer.json()["results"]]


def test_a_body_over_the_limit_is_a_413_with_the_limit(server):
    """With Content-Length the answer needs no counting."""
    problem = _check(_post(server, b" " * 2_000_001), 413, "too_large")

    assert "at most 2000000 bytes" in problem["detail"]


def test_a_streamed_body_over_the_limit_is_a_413(server):
    """Without Content-Length the bytes are counted as they come."""
    chunks = (b" " * 100_000 for _ in range(40))

    answer = server.client.post("/score", content=chunks, headers=JSON)

    assert "content-length" not in answer.request.headers
    _check(answer, 413, "too_large")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-encoding": "br"},
    ],
)
def test_another_content_type_or_encoding_is_a_415(server, headers):
    """The body is not guessed at."""
    _check(_post(server, _body(), **headers), 415, "media_type")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing-here", 404, "not_found"),
        ("GET", "/score/", 404, "not_found"),
        ("GET", "/score", 405, "method_not_allowed"),
        ("DELETE", "/info", 405, "method_not_allowed"),
    ],
)
def test_wrong_paths_and_methods_are_problems_too(server, method: str, path: str, status: int, code: str):
    """404 and 405 carry the same body as every other error."""
    _check(server.client.request(method, path), status, code)


def test_the_service_answers_after_all_that(server):
    """A good request still works."""
    assert _post(server, _body()).status_code == 200


def test_of_a_body_with_thousands_of_faults_the_number_is_told():
    """A list of them all takes seconds in which nothing else runs."""
    item = {"id": 1, "title": "kettle", **{f"x{i}": i for i in range(50)}}
    body = json.dumps({"query": "kettle", "items": [item | {"id": i} for i in range(300)]}).encode()
    with pytest.raises(SchemaError) as error:
        parse_body(ScoreRequest, body)

    assert error.value.problems == (("", "expected a body of this schema, found 15000 faults in it"),)
