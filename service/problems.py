"""One table from exceptions to problem+json (RFC 9457): the only place that knows which error is which status."""

from __future__ import annotations

import math
from http import HTTPStatus

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from relevance.errors import (
    BodyTimeoutError,
    ClientGoneError,
    DeadlineError,
    EmptyRequestError,
    EngineError,
    MalformedBodyError,
    MediaTypeError,
    NotOfferedError,
    NotReadyError,
    OverloadError,
    QueryTooLongError,
    ReloadError,
    RequestError,
    SchemaError,
    ServiceError,
    TooLargeError,
    UnauthorisedError,
)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:relevance-tiers:problem:"

TABLE: dict[type[Exception], tuple[int, str, str]] = {
    MalformedBodyError: (400, "malformed_body", "Malformed"),
    EmptyRequestError: (400, "empty_items", "Empty"),
    UnauthorisedError: (401, "unauthorised", "Unauthorized"),
    BodyTimeoutError: (408, "body_timeout", "Timeout"),
    TooLargeError: (413, "too_large", "Validation"),
    MediaTypeError: (415, "media_type", "Validation"),
    SchemaError: (422, "schema", "Validation"),
    QueryTooLongError: (422, "query_too_long", "Validation"),
    NotOfferedError: (422, "not_offered", "Validation"),
    RequestError: (400, "bad_request", "Validation"),
    OverloadError: (429, "overloaded", "Overloaded"),
    NotReadyError: (503, "not_ready", "Unhealthy"),
    ReloadError: (409, "not_reloaded", "Unhealthy"),
    DeadlineError: (504, "deadline", "Deadline"),
    EngineError: (500, "engine", "Backend"),
    ServiceError: (500, "internal", "Backend"),
}
"""Exception → status, code, error_type; the first entry that matches counts."""
_HTTP_CODES = {403: "forbidden", 404: "not_found", 405: "method_not_allowed"}
_POINTING = (EmptyRequestError, NotOfferedError)
"""Errors whose message begins with the field at fault."""


def problem_response(error: Exception, *, request_id: str, instance: str) -> Response:
    """Give the response for an exception; what the table does not know becomes a 500 without its message.

    Args: instance: path of the request.
    """
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        status, error_type = error.status_code, "Validation"
        code = _HTTP_CODES.get(status, "http")
        detail = f"{instance[:200]}: {error.detail}"
        headers.update(error.headers or {})
    else:
        known = next((row for kind, row in TABLE.items() if isinstance(error, kind)), None)
        status, code, error_type = known or (500, "internal", "Backend")
        detail = str(error) if known else "unexpected failure; the log has it under this request_id"
    if isinstance(error, SchemaError):
        faults = [{"pointer": pointer, "message": message} for pointer, message in error.problems]
    elif isinstance(error, QueryTooLongError):
        faults = [{"pointer": "/query", "message": detail}]
    else:
        field = detail.partition(":")[0]
        faults = [{"pointer": f"/{field}", "message": detail}] if isinstance(error, _POINTING) else []
    body: dict[str, object] = {
        "type": TYPE_PREFIX + code.replace("_", "-"),
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance[:200],
        "code": code,
        "request_id": request_id,
        "errors": faults,
        "error": detail,
        "error_type": error_type,
        "message": detail,
    }
    if isinstance(error, OverloadError):
        headers["Retry-After"] = str(max(1, math.ceil(error.wait_s)))
        body["retry_after_ms"] = max(1, math.ceil(error.wait_s * 1000))
    elif isinstance(error, NotReadyError):
        headers["Retry-After"] = "1"
    return Response(to_json(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


async def on_error(request: Request, error: Exception) -> Response:
    """Answer an exception that a route raised.

    Raises: ClientGoneError: as it came, there is nobody to answer.
    """
    if isinstance(error, ClientGoneError):
        raise error
    return problem_response(error, request_id=request.state.request_id, instance=request.url.path)
