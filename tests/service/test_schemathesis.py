"""Requests made up from the OpenAPI document, sound and unsound: answers as declared, problem details, no failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

DOCUMENT = json.loads((Path(__file__).parents[1] / "golden" / "openapi.json").read_text())
OPERATIONS = [
    pytest.param(path, method, sound, id=f"{path}-{'sound' if sound else 'unsound'}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for sound in (True, False)
    if path != "/admin/drain" and (sound or "requestBody" in operation)
]
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
MAX_EXAMPLES = 60


@pytest.fixture(scope="module")
def made_up(launch_shared):
    """A server that anything may be sent to."""
    return launch_shared(drain_s="0")


@pytest.fixture(scope="module")
def api(made_up):
    """What it says of itself."""
    return schemathesis.openapi.from_url(str(made_up.client.base_url.join("/openapi.json")))


def check(answer, case) -> None:
    """As declared; no 5xx but a 504 to a deadline that was asked for; every refusal is problem+json."""
    case.validate_response(answer, checks=CHECKS)
    body = case.body if isinstance(case.body, dict) else {}
    assert answer.status_code < 500 or (answer.status_code == 504 and "deadline_ms" in body)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == ["application/problem+json"]
        assert answer.json()["status"] == answer.status_code


@pytest.mark.parametrize(("path", "method", "sound"), OPERATIONS)
def test_whatever_is_sent_is_answered_as_declared(made_up, api, path: str, method: str, sound: bool):
    """Sound requests are never misread as malformed; what breaks the schema is refused."""
    mode = GenerationMode.POSITIVE if sound else GenerationMode.NEGATIVE

    @given(case=api[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=MAX_EXAMPLES if path == "/score" else MAX_EXAMPLES // 3,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def send(case) -> None:
        """Send one request."""
        answer = case.call()
        check(answer, case)
        assert sound or answer.status_code in {400, 413, 415, 422}

    send()
    assert made_up.client.get("/livez").status_code == 200
