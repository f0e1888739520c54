"""Reading what came back: typed answers, and the service's problems (RFC 9457) as errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from relevance_tiers_client.errors import (
    DeadlineError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ProblemError,
    RelevanceApiError,
    ServerFailureError,
    UnauthorisedError,
)
from relevance_tiers_client.models import Item, ScoreResponse

M = TypeVar("M", bound=BaseModel)
_KINDS: dict[int, type[RelevanceApiError]] = {
    401: UnauthorisedError,
    403: UnauthorisedError,
    429: OverloadedError,
    503: NotReadyError,
    504: DeadlineError,
}


class _Problem(BaseModel):
    """What this client reads of problem details."""

    code: str
    detail: str
    request_id: str = ""
    errors: list[ProblemError] = Field(default_factory=list)
    retry_after_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)


def read(model: type[M], body: bytes) -> M:
    """Read the body of a 200.

    Raises: ServerFailureError: it is not what was asked for.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = "".join(f"/{part}" for part in fault["loc"])
        raise unreadable(f"{model.__name__}{place}: {fault['msg']}, found {len(body)} bytes") from None


def read_scores(body: bytes, items: Sequence[Item]) -> ScoreResponse:
    """Read the answer to a request with these items.

    Raises: ServerFailureError: it is no answer, or the answer to another request.
    """
    answer = read(ScoreResponse, body)
    if answer.counts.items != len(items):
        raise unreadable(f"ScoreResponse: expected {len(items)} items, found {answer.counts.items}")
    for row in (*answer.results, *answer.filtered):
        if not 0 <= row.index < len(items) or row.id != items[row.index].id:
            raise unreadable(f"ScoreResponse: expected the id of the item sent, found another one at index {row.index}")
    return answer


def unreadable(detail: str) -> ServerFailureError:
    """Give the error of a 200 that is not what was asked for."""
    return ServerFailureError(200, "malformed_answer", detail)


def problem(status: int, headers: Mapping[str, str], body: bytes) -> RelevanceApiError:
    """Give the error that an answer other than 200 is.

    Args: headers: read without regard to case.
    """
    kind = _KINDS.get(status) or (InvalidRequestError if 400 <= status < 500 else ServerFailureError)
    try:
        found = _Problem.model_validate_json(body)
    except ValidationError:
        media_type = headers.get("content-type", "no content type")
        detail = f"expected problem details, found {len(body)} bytes of {media_type[:80]}"
        found = _Problem(code=f"http_{status}", detail=detail)
    asked_s = seconds_asked(headers.get("retry-after", ""))
    if found.retry_after_ms is not None:
        asked_s = found.retry_after_ms / 1000
    request_id = found.request_id or headers.get("x-request-id", "")
    return kind(status, found.code, found.detail, request_id, found.errors, asked_s)


def seconds_asked(value: str) -> float | None:
    """Give the seconds of a `Retry-After`, a number or a date; None where it says nothing that can be read."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())
