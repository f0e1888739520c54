"""The promise of docs/compatibility.md: what the last release answered, this one answers.

tests/golden/openapi.released.json is the contract of the last release; only a release replaces it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from openapi_breaks import breaks

from service.app import create_app
from service.settings import Settings

RELEASED = Path(__file__).parents[1] / "golden" / "openapi.released.json"
ROUTES = frozenset({"/find"})


def released():
    """Give the contract of the last release and the routes it promises: all but administration, the operator's own."""
    document = json.loads(RELEASED.read_text(encoding="utf-8"))
    return document, frozenset(path for path in document["paths"] if not path.startswith("/admin/"))


def test_nothing_that_the_last_release_promised_is_broken(tmp_path):
    """A line here is a break for somebody; docs/compatibility.md says what a release may do about it."""
    document, routes = released()
    current = create_app(Settings(bundle=tmp_path, threads=1)).openapi()

    assert routes >= {"/score", "/info", "/livez", "/readyz", "/startupz"}
    assert breaks(document, current, routes=routes) == []


def test_every_field_of_the_released_contract_is_watched():
    """Taken out one at a time, each field of each schema is missed, in whatever list or alternative it stands."""
    document, routes = released()
    fields = [
        (name, field) for name, schema in document["components"]["schemas"].items() for field in schema["properties"]
    ]
    unwatched = [
        f"{name}.{field}"
        for name, field in fields
        if not breaks(document, changed(document, f"SCHEMAS {name} properties {field}"), routes=routes)
    ]

    assert len(fields) > 50
    assert unwatched == []


@pytest.fixture
def old():
    """A small document: one route, a body of every kind of field, an answer, a problem."""
    ask = {
        "type": "object",
        "additionalProperties": False,
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "minLength": 1, "maxLength": 64},
            "tier": {"anyOf": [{"type": "integer", "minimum": 0, "exclusiveMaximum": 5}, {"type": "null"}]},
            "sort": {"type": "string", "enum": ["input", "score"], "default": "input"},
            "ids": {"type": "array", "maxItems": 9, "items": {"type": "integer"}},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
    answer = {
        "type": "object",
        "additionalProperties": False,
        "required": ["score", "source"],
        "properties": {
            "score": {"type": "number"},
            "source": {"type": "string", "enum": ["model", "cache"]},
            "reason": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "by_tier": {"type": "object", "additionalProperties": {"type": "integer"}},
            "shown": {"anyOf": [{"$ref": "#/components/schemas/Short"}, {"$ref": "#/components/schemas/Long"}]},
        },
    }
    short = {"title": "Short", "type": "object", "properties": {"id": {"type": "integer"}}}
    long = {"title": "Long", "type": "object", "properties": {"id": {"type": "integer"}, "name": {"type": "string"}}}
    schemas = {"Ask": ask, "Answer": answer, "Short": short, "Long": long}
    operation = {
        "parameters": [{"in": "header", "name": "x-deadline", "schema": {"type": "integer"}}],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}}},
        "responses": {
            "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}}},
            "429": {"description": "Shed"},
        },
    }
    return {"paths": {"/find": {"post": operation}}, "components": {"schemas": schemas}}


ROOTS = {
    "PATHS": ["paths"],
    "POST": ["paths", "/find", "post"],
    "SCHEMAS": ["components", "schemas"],
    "ASK": ["components", "schemas", "Ask", "properties"],
    "ANSWER": ["components", "schemas", "Answer", "properties"],
}


def changed(document, path, value=...):
    """Give a copy with one value set, or without it; a path is a root and steps, with spaces between."""
    made = copy.deepcopy(document)
    root, *steps = path.split(" ")
    *way, last = [*ROOTS[root], *steps]
    node = made
    for step in way:
        node = node[int(step) if isinstance(node, list) else step]
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return made


def test_the_same_document_breaks_nothing(old):
    """Nor does a copy whose keys come in another order."""
    assert breaks(old, json.loads(json.dumps(old, sort_keys=True)), routes=ROUTES) == []


REQUEST = "POST /find request"
BREAKS = {
    "a route": ("PATHS /find", ..., "POST /find: removed"),
    "a method": ("POST", ..., "POST /find: removed"),
    "a status": ("POST responses 429", ..., "POST /find 429: removed"),
    "an answer's media type": (
        "POST responses 200 content",
        {"text/csv": {}},
        "POST /find 200: application/json is not answered any more",
    ),
    "a request's media type": (
        "POST requestBody content",
        {"text/csv": {}},
        f"{REQUEST}: application/json is not read any more",
    ),
    "a body that must come": ("POST requestBody required", True, f"{REQUEST}: required now"),
    "a key that must come": ("POST security", [{"bearer": []}], "POST /find: needs a key now"),
    "a parameter": ("POST parameters", [], "POST /find header x-deadline: removed"),
    "a parameter that must come": ("POST parameters 0 required", True, "POST /find header x-deadline: required now"),
    "a parameter's type": (
        "POST parameters 0 schema type",
        "boolean",
        "POST /find header x-deadline: integer where boolean is understood",
    ),
    "a request field": ("ASK sort", ..., f"{REQUEST}.sort: removed"),
    "a field that must come": (
        "SCHEMAS Ask required",
        ["text", "tier"],
        f"{REQUEST}.tier: required now",
    ),
    "a request field's type": ("ASK text type", "integer", f"{REQUEST}.text: string where integer is understood"),
    "null in a request": (
        "ASK tier anyOf 1",
        {"type": "string"},
        f"{REQUEST}.tier: null where integer or string is understood",
    ),
    "a choice": ("ASK sort enum", ["input"], f"{REQUEST}.sort: 'score' is not taken any more"),
    "a choice where all was free": (
        "ASK text enum",
        ["shoes"],
        f"{REQUEST}.text: any other value is not taken any more",
    ),
    "a default": ("ASK sort default", "score", f"{REQUEST}.sort: default 'input' is 'score' now"),
    "a lower upper bound": ("ASK text maxLength", 63, f"{REQUEST}.text: maxLength 64 is 63 now"),
    "a higher lower bound": ("ASK text minLength", 2, f"{REQUEST}.text: minLength 1 is 2 now"),
    "a new bound": ("ASK ids minItems", 1, f"{REQUEST}.ids: minItems none is 1 now"),
    "a bound of an alternative": ("ASK tier anyOf 0 exclusiveMaximum", 4, f"{REQUEST}.tier: maximum 4 is 3 now"),
    "a pattern": ("ASK text pattern", "\\S", f"{REQUEST}.text: pattern none is \\S now"),
    "an element's type": ("ASK ids items type", "string", f"{REQUEST}.ids[]: integer where string is understood"),
    "the values of a map": (
        "ASK tags additionalProperties type",
        "integer",
        f"{REQUEST}.tags.*: string where integer is understood",
    ),
    "a map closed": ("ASK tags additionalProperties", False, f"{REQUEST}.tags: other fields are refused now"),
    "an answer's required field": ("ANSWER score", ..., "POST /find 200.score: removed"),
    "an answer's optional field": ("ANSWER reason", ..., "POST /find 200.reason: removed"),
    "a field that may be missing": (
        "SCHEMAS Answer required",
        ["source"],
        "POST /find 200.score: may be left out now",
    ),
    "an answer's type": ("ANSWER score type", "string", "POST /find 200.score: string where number is understood"),
    "null in an answer": (
        "ANSWER score",
        {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "POST /find 200.score: null where number is understood",
    ),
    "an untyped answer": ("ANSWER score", {}, "POST /find 200.score: anything where number is understood"),
    "an answer's map": (
        "ANSWER by_tier additionalProperties type",
        "number",
        "POST /find 200.by_tier.*: number where integer is understood",
    ),
    "a field of one alternative": ("SCHEMAS Long properties name", ..., "POST /find 200.shown.name: removed"),
    "what it cannot judge": (
        "ASK text not",
        {"const": "shoes"},
        f"{REQUEST}.text: changed, and this comparison does not know not",
    ),
}


@pytest.mark.parametrize(("path", "value", "line"), BREAKS.values(), ids=BREAKS)
def test_each_kind_of_break_is_found_and_named(old, path, value, line):
    """One change, one line that says where."""
    assert breaks(old, changed(old, path, value), routes=ROUTES) == [line]


FINE = {
    "a new route": ("PATHS /other", {"get": {"responses": {}}}),
    "a new method": ("PATHS /find get", {"responses": {}}),
    "a new status": ("POST responses 408", {"description": "Slow body"}),
    "a new optional parameter": (
        "POST parameters",
        [
            {"in": "header", "name": "x-deadline", "schema": {"type": "integer"}},
            {"in": "header", "name": "x-priority", "schema": {"type": "string"}},
        ],
    ),
    "a key that may come": ("POST security", [{}, {"bearer": []}]),
    "a new optional field": ("ASK locale", {"type": "string", "default": "us"}),
    "a field that need not come": ("SCHEMAS Ask required", []),
    "a wider type": ("ASK ids items type", "number"),
    "a new alternative": ("ASK text", {"anyOf": [{"type": "string", "maxLength": 64}, {"type": "integer"}]}),
    "a new choice": ("ASK sort enum", ["input", "score", "tier"]),
    "choices set free": ("ASK sort", {"type": "string", "default": "input"}),
    "a higher upper bound": ("ASK text maxLength", 65),
    "a bound written otherwise": (
        "ASK tier anyOf 0",
        {"type": "integer", "exclusiveMinimum": -1, "maximum": 4},
    ),
    "a bound taken away": ("ASK ids", {"type": "array", "items": {"type": "integer"}}),
    "another description": ("ASK text description", "what the shopper typed"),
    "a new answer field": ("ANSWER label", {"type": "string"}),
    "an answer field always there": ("SCHEMAS Answer required", ["score", "source", "reason"]),
    "a narrower answer": ("ANSWER score type", "integer"),
    "an answer never null": ("ANSWER reason", {"type": "string"}),
    "a new value in an answer": ("ANSWER source enum", ["model", "cache", "passthrough"]),
}


@pytest.mark.parametrize(("path", "value"), FINE.values(), ids=FINE)
def test_what_adds_or_loosens_breaks_nobody(old, path, value):
    """A minor version may do it."""
    assert breaks(old, changed(old, path, value), routes=ROUTES) == []
